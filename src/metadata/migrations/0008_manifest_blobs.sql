-- Whether a manifest of a certain repository refers to a blob is one look, however many of other repositories do: a layer
-- that all images of an account share is asked about in each of its repositories.

CREATE TABLE manifest_blobs_of_repositories (
    manifest_id INTEGER NOT NULL REFERENCES manifests ON DELETE CASCADE,
    blob_id INTEGER NOT NULL REFERENCES blobs,
    repository_id INTEGER NOT NULL, -- the manifest's
    PRIMARY KEY (manifest_id, blob_id)
) STRICT, WITHOUT ROWID;

INSERT INTO manifest_blobs_of_repositories (manifest_id, blob_id, repository_id)
    SELECT manifest_id, blob_id, repository_id FROM manifest_blobs JOIN manifests ON manifests.id = manifest_id;

DROP TABLE manifest_blobs;
ALTER TABLE manifest_blobs_of_repositories RENAME TO manifest_blobs;
CREATE INDEX manifest_blobs_by_blob ON manifest_blobs (blob_id, repository_id);
