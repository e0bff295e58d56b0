-- Under which claim of its name a followed account was told, so that a listing from another primary does not take away what
-- only this region still has, and what was here of a deleted account is told from a new one of its name.

ALTER TABLE follows ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0; -- of the claim; 0: not known
ALTER TABLE follows ADD COLUMN claim INTEGER NOT NULL DEFAULT 0; -- which claim of the name it is; 0: not known
-- While it is being listed: under this epoch goes on the list of divergent changes what the listing takes away.
ALTER TABLE follows ADD COLUMN keeps INTEGER;
