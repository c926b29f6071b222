"""The tables of the record store, and how older files become newer ones.

Rows are never changed in place by a write: a new version is added and the old one is marked `removed` with
the number of that write. So a reader can ask for the state after any recent write `s`: the rows with
``added <= s and (removed is null or removed > s)``. Removed rows are purged later, in small steps.
"""

from __future__ import annotations

APPLICATION_ID = 0x52534231  # "RSB1", in the header of every file that is ours
CHECKSUMS_SINCE = 2  # the first version whose snapshots have one
PAGE_SIZE = 8192  # seven 512-d fp16 vectors a page; the default of 4096 would waste a quarter

_VERSION_1 = """
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL              -- number of the last write
) STRICT;
INSERT INTO state VALUES (1, 0);

CREATE TABLE collection (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    spec TEXT NOT NULL,               -- JSON: model identity, code settings
    created_ms INTEGER NOT NULL,
    image_count INTEGER NOT NULL DEFAULT 0,
    record_count INTEGER NOT NULL DEFAULT 0,
    codec BLOB,                       -- what makes its binary codes, once learned
    dropped INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX collection_name ON collection (name) WHERE dropped = 0;

CREATE TABLE image (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL,
    image_id TEXT NOT NULL,
    name TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    content_type TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    tags TEXT NOT NULL,               -- JSON array
    attributes TEXT NOT NULL,         -- JSON object
    created_ms INTEGER NOT NULL,
    region_count INTEGER NOT NULL,
    added INTEGER NOT NULL,
    removed INTEGER
) STRICT;
CREATE UNIQUE INDEX image_live ON image (collection, image_id) WHERE removed IS NULL;
CREATE INDEX image_recent ON image (collection, created_ms, image_id) WHERE removed IS NULL;
CREATE INDEX image_removed ON image (removed) WHERE removed IS NOT NULL;

CREATE TABLE image_tag (
    collection INTEGER NOT NULL,
    tag TEXT NOT NULL,
    image INTEGER NOT NULL,
    PRIMARY KEY (collection, tag, image)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_tag_image ON image_tag (image);

CREATE TABLE record (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    collection INTEGER NOT NULL,
    image INTEGER NOT NULL,           -- image.ordinal
    record_id TEXT NOT NULL,
    level INTEGER NOT NULL,
    x_min REAL, y_min REAL, x_max REAL, y_max REAL,
    area INTEGER NOT NULL,
    predicted_iou REAL NOT NULL,
    stability_score REAL NOT NULL,
    attributes TEXT,                  -- JSON object; NULL when there are none
    added INTEGER NOT NULL,
    removed INTEGER,
    mask_height INTEGER, mask_width INTEGER, mask BLOB
) STRICT;
CREATE UNIQUE INDEX record_live ON record (collection, record_id) WHERE removed IS NULL;
CREATE INDEX record_image ON record (image);
CREATE INDEX record_removed ON record (removed) WHERE removed IS NOT NULL;

CREATE TABLE attribute (              -- for filters: those of images (record = 0) and of records
    collection INTEGER NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    image INTEGER NOT NULL,
    record INTEGER NOT NULL,
    PRIMARY KEY (collection, name, value, image, record)
) STRICT, WITHOUT ROWID;
CREATE INDEX attribute_image ON attribute (image);

CREATE TABLE vector (
    key INTEGER PRIMARY KEY,          -- record.key
    value BLOB NOT NULL               -- float16, little endian, unit length
) STRICT;
"""

# Checksums are NULL in rows that were written before there were any: these are not checked.
_VERSION_2 = """
ALTER TABLE state ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;     -- grows with each restore
ALTER TABLE state ADD COLUMN token_key BLOB;                       -- signs page tokens
UPDATE state SET token_key = randomblob(32);

ALTER TABLE collection ADD COLUMN checksum INTEGER;                -- see checksums.py
ALTER TABLE image ADD COLUMN checksum INTEGER;
ALTER TABLE record ADD COLUMN checksum INTEGER;                    -- of what the index holds
ALTER TABLE record ADD COLUMN body_checksum INTEGER;               -- of the rest that responses contain
ALTER TABLE record ADD COLUMN mask_checksum INTEGER;
ALTER TABLE vector ADD COLUMN checksum INTEGER;

ALTER TABLE image ADD COLUMN place INTEGER NOT NULL DEFAULT 0;     -- in lists; never goes back
UPDATE image SET place = MAX(created_ms, 0);
DROP INDEX image_recent;
CREATE INDEX image_recent ON image (collection, place, image_id) WHERE removed IS NULL;
"""

# For read replicas: rows that were changed in place, and whether removed ones are all still there.
_VERSION_3 = """
ALTER TABLE state ADD COLUMN vacuumed INTEGER NOT NULL DEFAULT 0;  -- removed rows may be gone up to here
UPDATE state SET vacuumed = seq;
ALTER TABLE state ADD COLUMN replica INTEGER NOT NULL DEFAULT 0;   -- 1 in the store of a read replica

ALTER TABLE image ADD COLUMN changed INTEGER;                      -- the write that did so in place
CREATE INDEX image_changed ON image (changed) WHERE changed IS NOT NULL;
ALTER TABLE collection ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
"""

MIGRATIONS: tuple[str, ...] = (_VERSION_1, _VERSION_2, _VERSION_3)
"""Script `i` takes a file from version `i` to `i + 1`; an empty file is version 0. Never edit one."""
