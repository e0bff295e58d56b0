-- Pull times that were handed to the primaries of followed accounts: everything up to this time, in UNIX seconds, has arrived.
ALTER TABLE follows ADD COLUMN pulls_told_until INTEGER NOT NULL DEFAULT 0;

CREATE INDEX manifests_by_pull ON manifests (repository_id, last_pulled_at) WHERE last_pulled_at IS NOT NULL;
CREATE INDEX tags_by_pull ON tags (repository_id, last_pulled_at) WHERE last_pulled_at IS NOT NULL;
