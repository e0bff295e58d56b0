-- Digests are in the compact form (algorithm byte, hash value), which sorts like their text.
-- Times are UNIX seconds.

CREATE TABLE accounts (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE repositories (
    id INTEGER PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts,
    full_name TEXT NOT NULL UNIQUE, -- account and path: the catalog's order is bytewise over both
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX repositories_by_account ON repositories (account_id, full_name);

CREATE TABLE blobs (
    id INTEGER PRIMARY KEY,
    account_id INTEGER NOT NULL REFERENCES accounts,
    digest BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    storage_key TEXT NOT NULL,
    blake3 BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (account_id, digest),
    UNIQUE (account_id, storage_key)
) STRICT;

CREATE TABLE mounts (
    repository_id INTEGER NOT NULL REFERENCES repositories,
    blob_id INTEGER NOT NULL REFERENCES blobs,
    mounted_at INTEGER NOT NULL,
    PRIMARY KEY (repository_id, blob_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX mounts_by_blob ON mounts (blob_id);

CREATE TABLE manifests (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never reused: pull times gathered for a deleted one must not hit another
    repository_id INTEGER NOT NULL REFERENCES repositories,
    digest BLOB NOT NULL,
    media_type TEXT NOT NULL,
    total_size_bytes INTEGER NOT NULL, -- the manifest and all that it refers to
    subject BLOB,
    artifact_type TEXT,
    annotations TEXT NOT NULL, -- a JSON object
    pushed_at INTEGER NOT NULL,
    last_pulled_at INTEGER,
    bytes BLOB NOT NULL,
    UNIQUE (repository_id, digest)
) STRICT;
CREATE INDEX manifests_by_subject ON manifests (repository_id, subject, digest) WHERE subject IS NOT NULL;
CREATE INDEX manifests_by_subject_and_type ON manifests (repository_id, subject, artifact_type, digest)
    WHERE subject IS NOT NULL;

CREATE TABLE manifest_blobs (
    manifest_id INTEGER NOT NULL REFERENCES manifests ON DELETE CASCADE,
    blob_id INTEGER NOT NULL REFERENCES blobs,
    PRIMARY KEY (manifest_id, blob_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX manifest_blobs_by_blob ON manifest_blobs (blob_id);

CREATE TABLE manifest_children (
    repository_id INTEGER NOT NULL REFERENCES repositories,
    child BLOB NOT NULL, -- a digest: an account may let children come later
    parent_id INTEGER NOT NULL REFERENCES manifests ON DELETE CASCADE,
    PRIMARY KEY (repository_id, child, parent_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX manifest_children_by_parent ON manifest_children (parent_id);

CREATE TABLE tags (
    repository_id INTEGER NOT NULL REFERENCES repositories,
    name TEXT NOT NULL,
    manifest_id INTEGER NOT NULL REFERENCES manifests,
    pushed_at INTEGER NOT NULL,
    last_pulled_at INTEGER,
    PRIMARY KEY (repository_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_by_manifest ON tags (manifest_id);

CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    repository TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    touched_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX uploads_by_time ON uploads (touched_at);
