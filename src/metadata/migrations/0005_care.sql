-- What the janitor remembers: when each thing was last looked at, and what was found. Times are UNIX seconds. A time of
-- looking lies in the future of the last look while somebody is at it: then the thing is due again when that lease ends.

ALTER TABLE accounts ADD COLUMN blobs_swept_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX accounts_by_blob_sweep ON accounts (blobs_swept_at);

ALTER TABLE repositories ADD COLUMN mounts_swept_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repositories ADD COLUMN images_collected_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX repositories_by_mount_sweep ON repositories (mounts_swept_at);
CREATE INDEX repositories_by_image_collection ON repositories (images_collected_at);

ALTER TABLE blobs ADD COLUMN validated_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE blobs ADD COLUMN broken_since INTEGER; -- its bytes are lost or wrong
ALTER TABLE blobs ADD COLUMN unneeded_since INTEGER; -- no repository has it
CREATE INDEX blobs_by_validation ON blobs (validated_at);
CREATE INDEX blobs_broken ON blobs (account_id, digest) WHERE broken_since IS NOT NULL;

ALTER TABLE mounts ADD COLUMN unneeded_since INTEGER; -- no manifest of the repository refers to it

CREATE INDEX uploads_by_repository ON uploads (repository);

-- Beside the manifests, whose rows hold their bytes and would be written anew with every look.
CREATE TABLE manifest_care (
    manifest_id INTEGER PRIMARY KEY REFERENCES manifests ON DELETE CASCADE,
    repository_id INTEGER NOT NULL,
    validated_at INTEGER NOT NULL,
    error TEXT, -- why it is not what it should be
    gc_status TEXT, -- what the retention policies last said, a JSON object
    subject_gone INTEGER NOT NULL DEFAULT 0 -- 1: what it is about was here and was deleted
) STRICT;
CREATE INDEX manifest_care_by_validation ON manifest_care (validated_at);
CREATE INDEX manifest_care_with_error ON manifest_care (repository_id) WHERE error IS NOT NULL;

INSERT INTO manifest_care (manifest_id, repository_id, validated_at) SELECT id, repository_id, 0 FROM manifests;

CREATE TRIGGER manifest_cared_for AFTER INSERT ON manifests BEGIN
    INSERT INTO manifest_care (manifest_id, repository_id, validated_at)
        VALUES (NEW.id, NEW.repository_id, NEW.pushed_at);
    UPDATE manifest_care SET subject_gone = 0 WHERE subject_gone = 1 AND manifest_id IN
        (SELECT id FROM manifests WHERE repository_id = NEW.repository_id AND subject = NEW.digest);
END;

CREATE TRIGGER subject_went AFTER DELETE ON manifests BEGIN
    UPDATE manifest_care SET subject_gone = 1 WHERE manifest_id IN
        (SELECT id FROM manifests WHERE repository_id = OLD.repository_id AND subject = OLD.digest);
END;

-- Which accounts a declarative file asked for: those that it no longer names are deleted.
CREATE TABLE managed_accounts (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
