-- What was changed, by whom and from where. Ids grow and are never used again: they are the markers of pages and the
-- cursors of exports. Times are UNIX milliseconds.

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    tenant TEXT, -- NULL: for operators only
    actor TEXT NOT NULL, -- as in tokens: user:<name>, robot:<name>, or empty
    address TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    request_id TEXT NOT NULL,
    action TEXT NOT NULL,
    kind TEXT NOT NULL, -- of the target
    target TEXT NOT NULL,
    detail TEXT NOT NULL,
    status INTEGER NOT NULL -- as HTTP has it
) STRICT;
CREATE INDEX audit_by_tenant ON audit (tenant, id) WHERE tenant IS NOT NULL;
CREATE INDEX audit_by_time ON audit (at_ms);

CREATE TABLE audit_exports (
    sink TEXT PRIMARY KEY,
    last_id INTEGER NOT NULL -- everything up to it has arrived there
) STRICT, WITHOUT ROWID;
