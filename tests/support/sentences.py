"""One error of every class, with its sentence: for the tests of the errors and of how they travel."""

from __future__ import annotations

from rayfold.runtime.errors import (
    CallerError,
    CodeMismatch,
    CommandIdReused,
    Conflict,
    Damaged,
    DefinitionError,
    Fenced,
    HandlerFailed,
    InvalidId,
    InvalidMessage,
    NotInHistory,
    NotPrivate,
    NotYetVisible,
    Overloaded,
    RayfoldError,
    RebuildCancelled,
    Refusal,
    Rejected,
    Sealed,
    StorageFailed,
    StoreError,
    StoreInUse,
    StoreMismatch,
    StoreMissing,
    SubscriptionInUse,
    Unavailable,
    UnknownEvent,
    UnknownName,
)

SENTENCES: list[tuple[RayfoldError, str]] = [
    (RayfoldError("something", 5), "something 5"),
    (
        DefinitionError("Account.deposit", "it has no annotation", "annotate it"),
        "Account.deposit: it has no annotation; annotate it",
    ),
    (DefinitionError("Account.deposit", "it has no annotation"), "Account.deposit: it has no annotation"),
    (CallerError("not like this"), "not like this"),
    (InvalidMessage("Deposit", "amount is missing"), "Deposit: amount is missing"),
    (
        InvalidMessage("Deposit", "amuont is not a field of it", "its fields are amount"),
        "Deposit: amuont is not a field of it; its fields are amount",
    ),
    (InvalidId("aggregate id", "", "is empty"), "aggregate id '' is empty"),
    (
        UnknownName("command of Account", "Depose", ["Withdraw", "Deposit"]),
        "no command of Account is named 'Depose'; known: Deposit, Withdraw",
    ),
    (
        UnknownName("command of Account", "Deposit", ["Deposit"]),
        "this 'Deposit' is not the command of Account that was registered, but another class of that name; the "
        "class was probably defined again; restart the runtime with the new one",
    ),
    (
        UnknownName("partition", "12", [str(number) for number in range(12)]),
        "no partition is named '12'; known: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11",
    ),
    (UnknownName("aggregate", "Account", ()), "no aggregate is named 'Account'; known: none"),
    (NotInHistory("Account/alice", "version 9", 6), "Account/alice has no version 9; it is at 6"),
    (NotInHistory("Account/bob", "version 1", 0), "Account/bob has no version 1; it has no events"),
    (
        CommandIdReused("0a" * 16, "Account/alice"),
        "command id 0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a was already used for a different command than this one to"
        " Account/alice; give each new command an id of its own",
    ),
    (Refusal("no"), "no"),
    (Rejected("closed"), "closed"),
    (Rejected("insufficient_funds", balance=5, needed=7), "insufficient_funds (balance=5, needed=7)"),
    (
        Rejected.with_facts("insufficient_funds", {"balance": 5, "needed": 7}, "Account/alice", "Withdraw"),
        "Account/alice refused Withdraw: insufficient_funds (balance=5, needed=7)",
    ),
    (Rejected.with_facts("closed", {}, "Account/alice", "Withdraw"), "Account/alice refused Withdraw: closed"),
    (Conflict("Account/alice", 4, 6), "expected version 4 of Account/alice, but the stream is at 6"),
    (Conflict("Account/alice", 0, 6), "expected no stream of Account/alice, but the stream is at 6"),
    (
        HandlerFailed("Account.deposit", "Account/alice", "ValueError: no"),
        "Account.deposit failed on Account/alice: ValueError: no",
    ),
    (Unavailable("Account/alice", "no answer in time"), "Account/alice: no answer in time"),
    (
        NotYetVisible("Balances", 3, 20, 17),
        "Balances: position 20 of partition 3 is not visible yet, the replica is at 17",
    ),
    (
        NotYetVisible("Balances", 3, 20, 17, "Balances cannot show them: no memory"),
        "the command succeeded and its events are stored, but Balances cannot show them: no memory",
    ),
    (
        Overloaded("the queue to partition 3", 32_768, "items"),
        "the queue to partition 3: limit of 32,768 items reached; this one was not sent, try again later",
    ),
    (
        RebuildCancelled("Balances", 2, "was cancelled"),
        "the rebuild of Balances version 2 was cancelled; what served before goes on",
    ),
    (StoreError("broken"), "broken"),
    (StoreMissing("/data", "there is no store here"), "/data: there is no store here"),
    (StoreMismatch("/data", "it has 4 partitions, not 2"), "/data: it has 4 partitions, not 2"),
    (
        StoreMismatch("/data", "it has 4 partitions, not 2", "give partitions=4"),
        "/data: it has 4 partitions, not 2; give partitions=4",
    ),
    (
        CodeMismatch("/data", [("event 'A' version 1", "no class has that name", "keep its class")]),
        "/data: event 'A' version 1: no class has that name; keep its class",
    ),
    (
        CodeMismatch("/data", [("event 'A' version 1", "gone", "keep it"), ("aggregate 'B'", "gone", "keep it")]),
        "/data: the code does not fit what the store holds, in 2 places: (1) event 'A' version 1: gone; keep it; (2)"
        " aggregate 'B': gone; keep it",
    ),
    (
        SubscriptionInUse("mailer", "0 of 3", "this one (process 5 on here)"),
        "subscription 'mailer': member 0 of 3 is in use by this one (process 5 on here); close it there first, or use"
        " another name or member",
    ),
    (
        StoreInUse("/data", "the runtime of process 5"),
        "/data is in use by the runtime of process 5; share it with connect(path), with Runtime(..., linger=True) in "
        "each program, or with `rayfold run`, or stop that runtime first",
    ),
    (
        StoreInUse("/data", "the node agent of bank (process 5)"),
        "/data is in use by the node agent of bank (process 5); wait for its end, or stop it first",
    ),
    (StorageFailed("/data/partition-00003", "no space left"), "/data/partition-00003: no space left"),
    (
        NotPrivate("/data", "this folder belongs to user 7, not to user 5", "choose another place"),
        "/data: this folder belongs to user 7, not to user 5; choose another place",
    ),
    (Fenced("partition 3", 4, 5), "partition 3: epoch 4 may not append, epoch 5 has taken over"),
    (Fenced("partition 3", 0, 5), "partition 3: may not append any more"),
    (Fenced("partition 3", 0, 0), "partition 3: may not append any more"),
    (Fenced("partition 3", 5, 5), "partition 3: may not append any more"),
    (
        Sealed("partition 3", "node node-1 (0d8f)"),
        "partition 3: moved to node node-1 (0d8f); nothing is appended to it here",
    ),
    (Sealed("partition 3", "", "this move was called off"), "partition 3: this move was called off"),
    (
        Damaged("event 7", "its checksum is wrong"),
        "event 7 is damaged: its checksum is wrong",
    ),
    (
        UnknownEvent("Deposited", 3, "Deposited is only at version 2"),
        "stored event 'Deposited' version 3 cannot be read: Deposited is only at version 2",
    ),
]
"""Some classes twice, where the sentence has two forms."""
