"""The report: one self-contained page with plots, each with a sentence on what it shows. Start with `page.py`."""
