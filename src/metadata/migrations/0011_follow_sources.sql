-- Whose log the place in an account is of: places in the logs of two nodes say nothing about each other.
ALTER TABLE follows ADD COLUMN source TEXT; -- a node
