"""The read processes: one actor per part and replica of a projection, and the fleet that they form."""
