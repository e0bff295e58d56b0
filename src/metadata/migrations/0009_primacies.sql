-- Who is primary changes: what this node must not forget about that.

-- Accounts that this node is primary of, was, or is about to be. A row goes once nothing has to be done about it any more.
CREATE TABLE primacies (
    account TEXT PRIMARY KEY, -- a name
    epoch INTEGER NOT NULL, -- of the claim
    stage INTEGER NOT NULL -- 0: held; 1: being handed over; 2: perhaps to come; 3: taken over, not in order yet
) STRICT, WITHOUT ROWID;

-- Where in the log of the primary before this node was when it took an account over: what is later there, is not here.
CREATE TABLE successions (
    account TEXT NOT NULL,
    epoch INTEGER NOT NULL, -- the one that began with it
    sequence INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    PRIMARY KEY (account, epoch)
) STRICT, WITHOUT ROWID;

-- What this node recorded as the primary and the next primary never had. It stays until an operator has decided.
CREATE TABLE divergent (
    id INTEGER PRIMARY KEY,
    account TEXT NOT NULL,
    epoch INTEGER NOT NULL, -- in which it was recorded
    at INTEGER NOT NULL, -- UNIX seconds
    kind INTEGER NOT NULL, -- as of events
    repository TEXT NOT NULL, -- its full name
    digest BLOB NOT NULL, -- of the manifest, or empty
    tag TEXT NOT NULL, -- or empty
    media_type TEXT NOT NULL, -- of the manifest, or empty
    bytes BLOB, -- of the manifest
    UNIQUE (account, repository, tag, digest, kind)
) STRICT;
CREATE INDEX divergent_by_account ON divergent (account, id);

-- Blobs that it needs, which nothing sweeps as long as they are named here.
CREATE TABLE divergent_blobs (
    divergent_id INTEGER NOT NULL REFERENCES divergent ON DELETE CASCADE,
    blob_id INTEGER NOT NULL REFERENCES blobs,
    PRIMARY KEY (divergent_id, blob_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX divergent_blobs_by_blob ON divergent_blobs (blob_id);

-- Blobs that manifests refer to and that were not here when the account was taken over: other regions may have them.
CREATE TABLE missing_blobs (
    repository_id INTEGER NOT NULL REFERENCES repositories ON DELETE CASCADE,
    digest BLOB NOT NULL,
    PRIMARY KEY (repository_id, digest)
) STRICT, WITHOUT ROWID;
