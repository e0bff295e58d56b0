-- The ordered log of what changed in each account, for the regions that follow it. The database writes it itself, in the
-- transaction of each change, so that no way of writing can forget it.

-- Every event has a place in its account's log and a random stamp: a place with another stamp is one in another log, of
-- another node or of a database that was put back from a copy.
ALTER TABLE accounts ADD COLUMN event_head INTEGER NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN event_stamp INTEGER NOT NULL DEFAULT 0;
UPDATE accounts SET event_stamp = random();

CREATE TABLE events (
    account_id INTEGER NOT NULL REFERENCES accounts ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    at INTEGER NOT NULL, -- UNIX seconds
    kind INTEGER NOT NULL, -- see metadata/events.rs
    repository TEXT NOT NULL, -- its full name
    digest BLOB, -- of the manifest or blob
    tag TEXT,
    PRIMARY KEY (account_id, sequence)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER account_stamped AFTER INSERT ON accounts BEGIN
    UPDATE accounts SET event_stamp = random() WHERE id = NEW.id;
END;

CREATE TRIGGER event_counted AFTER INSERT ON events BEGIN
    UPDATE accounts SET event_head = NEW.sequence, event_stamp = NEW.stamp WHERE id = NEW.account_id;
END;

CREATE TRIGGER repository_made_logged AFTER INSERT ON repositories BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository)
        SELECT id, event_head + 1, random(), unixepoch(), 1, NEW.full_name FROM accounts WHERE id = NEW.account_id;
END;

CREATE TRIGGER repository_gone_logged AFTER DELETE ON repositories BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository)
        SELECT id, event_head + 1, random(), unixepoch(), 2, OLD.full_name FROM accounts WHERE id = OLD.account_id;
END;

CREATE TRIGGER manifest_put_logged AFTER INSERT ON manifests BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository, digest)
        SELECT accounts.id, event_head + 1, random(), unixepoch(), 3, full_name, NEW.digest FROM repositories
        JOIN accounts ON accounts.id = account_id WHERE repositories.id = NEW.repository_id;
END;

CREATE TRIGGER manifest_changed_logged AFTER UPDATE OF media_type, artifact_type ON manifests
WHEN OLD.media_type <> NEW.media_type OR OLD.artifact_type IS NOT NEW.artifact_type BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository, digest)
        SELECT accounts.id, event_head + 1, random(), unixepoch(), 3, full_name, NEW.digest FROM repositories
        JOIN accounts ON accounts.id = account_id WHERE repositories.id = NEW.repository_id;
END;

CREATE TRIGGER manifest_gone_logged AFTER DELETE ON manifests BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository, digest)
        SELECT accounts.id, event_head + 1, random(), unixepoch(), 4, full_name, OLD.digest FROM repositories
        JOIN accounts ON accounts.id = account_id WHERE repositories.id = OLD.repository_id;
END;

CREATE TRIGGER tag_set_logged AFTER INSERT ON tags BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository, digest, tag)
        SELECT accounts.id, event_head + 1, random(), unixepoch(), 5, full_name, manifests.digest, NEW.name
        FROM repositories JOIN accounts ON accounts.id = account_id JOIN manifests ON manifests.id = NEW.manifest_id
        WHERE repositories.id = NEW.repository_id;
END;

CREATE TRIGGER tag_moved_logged AFTER UPDATE OF manifest_id ON tags WHEN OLD.manifest_id <> NEW.manifest_id BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository, digest, tag)
        SELECT accounts.id, event_head + 1, random(), unixepoch(), 5, full_name, manifests.digest, NEW.name
        FROM repositories JOIN accounts ON accounts.id = account_id JOIN manifests ON manifests.id = NEW.manifest_id
        WHERE repositories.id = NEW.repository_id;
END;

CREATE TRIGGER tag_gone_logged AFTER DELETE ON tags BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository, tag)
        SELECT accounts.id, event_head + 1, random(), unixepoch(), 6, full_name, OLD.name FROM repositories
        JOIN accounts ON accounts.id = account_id WHERE repositories.id = OLD.repository_id;
END;

CREATE TRIGGER mount_gone_logged AFTER DELETE ON mounts BEGIN
    INSERT INTO events (account_id, sequence, stamp, at, kind, repository, digest)
        SELECT accounts.id, event_head + 1, random(), unixepoch(), 7, full_name, blobs.digest FROM repositories
        JOIN accounts ON accounts.id = repositories.account_id JOIN blobs ON blobs.id = OLD.blob_id
        WHERE repositories.id = OLD.repository_id;
END;

-- Accounts of other regions whose changes are followed here.
CREATE TABLE follows (
    account TEXT PRIMARY KEY, -- a name
    state INTEGER NOT NULL, -- 0: copies come by pulls; 1: everything is being listed; 2: everything up to the place
    sequence INTEGER NOT NULL, -- the place in the primary's log
    stamp INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Nodes that may hold a lease of this one, so that a restart waits for it to run out.
CREATE TABLE lease_holders (
    node TEXT PRIMARY KEY,
    lease_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
