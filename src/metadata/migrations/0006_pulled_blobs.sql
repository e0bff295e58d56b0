-- Blobs that came here from another region or registry when somebody pulled them, and can be had there again. What was
-- pushed to this region is not among them. Times are UNIX seconds.

CREATE TABLE pulled_blobs (
    blob_id INTEGER PRIMARY KEY REFERENCES blobs ON DELETE CASCADE,
    used_at INTEGER NOT NULL
) STRICT;
CREATE INDEX pulled_blobs_by_use ON pulled_blobs (used_at);
