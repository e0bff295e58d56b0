-- What accounts, tenants and repositories hold. The database keeps these counters itself, in the transaction that changes
-- what they count, so that no way of writing can forget them.

ALTER TABLE manifests ADD COLUMN labels TEXT NOT NULL DEFAULT '{}'; -- a JSON object: those of the image's configuration
ALTER TABLE manifests ADD COLUMN min_layer_created_at INTEGER;
ALTER TABLE manifests ADD COLUMN max_layer_created_at INTEGER;

ALTER TABLE repositories ADD COLUMN manifest_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repositories ADD COLUMN tag_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repositories ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0; -- mounted blobs, and manifests
ALTER TABLE repositories ADD COLUMN pushed_at INTEGER NOT NULL DEFAULT 0; -- the last push, though it was deleted since

ALTER TABLE accounts ADD COLUMN tenant TEXT NOT NULL DEFAULT ''; -- who is billed; empty: not known yet
ALTER TABLE accounts ADD COLUMN manifest_count INTEGER NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0; -- blobs, each once, and manifests

CREATE TABLE tenants (
    name TEXT PRIMARY KEY,
    manifest_count INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

UPDATE repositories SET
    manifest_count = (SELECT count(*) FROM manifests WHERE repository_id = repositories.id),
    tag_count = (SELECT count(*) FROM tags WHERE repository_id = repositories.id),
    size_bytes = (SELECT coalesce(sum(length(bytes)), 0) FROM manifests WHERE repository_id = repositories.id)
        + (SELECT coalesce(sum(blobs.size_bytes), 0) FROM mounts JOIN blobs ON blobs.id = mounts.blob_id
           WHERE mounts.repository_id = repositories.id),
    pushed_at = max(created_at,
        (SELECT coalesce(max(pushed_at), 0) FROM manifests WHERE repository_id = repositories.id));

UPDATE accounts SET
    manifest_count = (SELECT coalesce(sum(manifest_count), 0) FROM repositories WHERE account_id = accounts.id),
    size_bytes = (SELECT coalesce(sum(length(manifests.bytes)), 0) FROM repositories
                  JOIN manifests ON manifests.repository_id = repositories.id WHERE account_id = accounts.id)
        + (SELECT coalesce(sum(blobs.size_bytes), 0) FROM blobs WHERE account_id = accounts.id);

CREATE TRIGGER manifest_counted AFTER INSERT ON manifests BEGIN
    UPDATE repositories SET manifest_count = manifest_count + 1, size_bytes = size_bytes + length(NEW.bytes),
        pushed_at = max(pushed_at, NEW.pushed_at) WHERE id = NEW.repository_id;
    UPDATE accounts SET manifest_count = manifest_count + 1, size_bytes = size_bytes + length(NEW.bytes)
        WHERE id = (SELECT account_id FROM repositories WHERE id = NEW.repository_id);
END;

CREATE TRIGGER manifest_pushed_again AFTER UPDATE OF pushed_at ON manifests BEGIN
    UPDATE repositories SET pushed_at = max(pushed_at, NEW.pushed_at) WHERE id = NEW.repository_id;
END;

CREATE TRIGGER manifest_uncounted AFTER DELETE ON manifests BEGIN
    UPDATE repositories SET manifest_count = manifest_count - 1, size_bytes = size_bytes - length(OLD.bytes)
        WHERE id = OLD.repository_id;
    UPDATE accounts SET manifest_count = manifest_count - 1, size_bytes = size_bytes - length(OLD.bytes)
        WHERE id = (SELECT account_id FROM repositories WHERE id = OLD.repository_id);
END;

CREATE TRIGGER tag_counted AFTER INSERT ON tags BEGIN
    UPDATE repositories SET tag_count = tag_count + 1, pushed_at = max(pushed_at, NEW.pushed_at)
        WHERE id = NEW.repository_id;
END;

CREATE TRIGGER tag_moved AFTER UPDATE OF pushed_at ON tags BEGIN
    UPDATE repositories SET pushed_at = max(pushed_at, NEW.pushed_at) WHERE id = NEW.repository_id;
END;

CREATE TRIGGER tag_uncounted AFTER DELETE ON tags BEGIN
    UPDATE repositories SET tag_count = tag_count - 1 WHERE id = OLD.repository_id;
END;

CREATE TRIGGER mount_counted AFTER INSERT ON mounts BEGIN
    UPDATE repositories SET size_bytes = size_bytes + (SELECT size_bytes FROM blobs WHERE id = NEW.blob_id)
        WHERE id = NEW.repository_id;
END;

CREATE TRIGGER mount_uncounted AFTER DELETE ON mounts BEGIN
    UPDATE repositories SET size_bytes = size_bytes - (SELECT size_bytes FROM blobs WHERE id = OLD.blob_id)
        WHERE id = OLD.repository_id;
END;

CREATE TRIGGER blob_counted AFTER INSERT ON blobs BEGIN
    UPDATE accounts SET size_bytes = size_bytes + NEW.size_bytes WHERE id = NEW.account_id;
END;

CREATE TRIGGER blob_resized AFTER UPDATE OF size_bytes ON blobs WHEN OLD.size_bytes <> NEW.size_bytes BEGIN
    UPDATE accounts SET size_bytes = size_bytes + NEW.size_bytes - OLD.size_bytes WHERE id = NEW.account_id;
    UPDATE repositories SET size_bytes = size_bytes + NEW.size_bytes - OLD.size_bytes
        WHERE id IN (SELECT repository_id FROM mounts WHERE blob_id = NEW.id);
END;

CREATE TRIGGER blob_uncounted AFTER DELETE ON blobs BEGIN
    UPDATE accounts SET size_bytes = size_bytes - OLD.size_bytes WHERE id = OLD.account_id;
END;

CREATE TRIGGER account_counted AFTER UPDATE OF manifest_count, size_bytes ON accounts BEGIN
    UPDATE tenants SET manifest_count = manifest_count + NEW.manifest_count - OLD.manifest_count,
        size_bytes = size_bytes + NEW.size_bytes - OLD.size_bytes WHERE name = NEW.tenant;
END;

CREATE TRIGGER account_handed_over AFTER UPDATE OF tenant ON accounts WHEN OLD.tenant <> NEW.tenant BEGIN
    UPDATE tenants SET manifest_count = manifest_count - OLD.manifest_count, size_bytes = size_bytes - OLD.size_bytes
        WHERE name = OLD.tenant;
    UPDATE tenants SET manifest_count = manifest_count + NEW.manifest_count, size_bytes = size_bytes + NEW.size_bytes
        WHERE name = NEW.tenant;
END;

CREATE TRIGGER account_uncounted AFTER DELETE ON accounts BEGIN
    UPDATE tenants SET manifest_count = manifest_count - OLD.manifest_count, size_bytes = size_bytes - OLD.size_bytes
        WHERE name = OLD.tenant;
END;
