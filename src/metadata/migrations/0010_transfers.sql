-- Uploads that are transfers of a blob from another region: what they will be, so that one that was broken off can go
-- on. They live and end with their upload.

CREATE TABLE transfers (
    repository TEXT NOT NULL,
    digest BLOB NOT NULL,
    upload_id TEXT NOT NULL REFERENCES uploads ON DELETE CASCADE,
    size_bytes INTEGER NOT NULL,
    blake3 BLOB NOT NULL,
    PRIMARY KEY (repository, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX transfers_by_upload ON transfers (upload_id);
