-- Times of pushes travel: what is pushed again, without changing anything but its time, is told as well. The region that becomes
-- the primary after a failover must not take it for old and have it collected.

DROP TRIGGER manifest_changed_logged;
CREATE TRIGGER manifest_changed_logged AFTER UPDATE OF media_type, artifact_type, pushed_at ON manifests
WHEN OLD.media_type <> NEW.media_type OR OLD.artifact_type IS NOT NEW.artifact_type OR OLD.pushed_at <> NEW.pushed_at BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository, digest)
        SELECT accounts.id, event_head + 1, random(), unixepoch(), 3, full_name, NEW.digest FROM repositories
        JOIN accounts ON accounts.id = account_id WHERE repositories.id = NEW.repository_id;
END;

DROP TRIGGER tag_moved_logged;
CREATE TRIGGER tag_moved_logged AFTER UPDATE OF manifest_id, pushed_at ON tags
WHEN OLD.manifest_id <> NEW.manifest_id OR OLD.pushed_at <> NEW.pushed_at BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository, digest, tag)
        SELECT accounts.id, event_head + 1, random(), unixepoch(), 5, full_name, manifests.digest, NEW.name
        FROM repositories JOIN accounts ON accounts.id = account_id JOIN manifests ON manifests.id = NEW.manifest_id
        WHERE repositories.id = NEW.repository_id;
END;
