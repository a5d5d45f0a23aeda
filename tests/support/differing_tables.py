# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys, partitions, indexes, constraints and sequences that differ."""

from __future__ import annotations

from tests.support.differing import ADD, APPLY, BREAKS, CREATE, HARMLESS, PRIMARY, Case, Found

DEEP = (
    "CREATE TABLE p (a int, b int, PRIMARY KEY (a, b)) PARTITION BY LIST (a);"
    " CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1) PARTITION BY RANGE (b);"
    " CREATE TABLE p1_1 PARTITION OF p1 FOR VALUES FROM (0) TO (10); "
)
PARENT = "CREATE TABLE p (id int, v int, PRIMARY KEY (id)) PARTITION BY RANGE (id); "
BY_LIST = (
    "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN ({});"
    " CREATE TABLE p2 PARTITION OF p FOR VALUES IN ({})"
)
LOW = "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); "
HIGH = "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200); "
ALONE = "CREATE TABLE p1 (id int PRIMARY KEY, v int); "
WIDE = "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (200); "
TABLE = "CREATE TABLE t (id int PRIMARY KEY, v int, w int); "
EXCLUDE = "ALTER TABLE t ADD CONSTRAINT k EXCLUDE USING gist (int4range(v, v, '[]') WITH &&)"
OTHER = "CREATE TABLE o (id int PRIMARY KEY); "
FOREIGN = "ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (v) REFERENCES o"
PLAIN = "CREATE TABLE t (id int PRIMARY KEY, v int)"
CHANGE = "INSERT INTO t VALUES (1, 1); UPDATE t SET v = 2 WHERE id = 1"
TWICE = "INSERT INTO t VALUES (1, 1, -1), (2, 1, -1)"

CASES = [
    Case(
        "key_lacking",
        PLAIN,
        "CREATE TABLE t (id int NOT NULL, v int)",
        (
            Found(BREAKS, ADD, "key t_pkey of @.t is missing on the target"),
            Found(BREAKS, ADD, "@.t has no primary key on the target"),
        ),
        row=CHANGE,
    ),
    Case(
        "key_nullable",
        PLAIN,
        "CREATE TABLE t (id int, v int)",
        (
            Found(BREAKS, ADD, "key t_pkey of @.t is missing on the target"),
            Found(BREAKS, ADD, "@.t has no primary key on the target"),
            Found(HARMLESS, APPLY, "column id of @.t may be NULL on the target only"),
        ),
        row=CHANGE,
    ),
    Case(
        "key_wide",
        "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL)",
        "CREATE TABLE t (id int, v int, PRIMARY KEY (id, v))",
        (
            Found(BREAKS, APPLY, "rows of @.t are known by id on the source and by id, v on the target"),
            Found(HARMLESS, APPLY, "key t_pkey of @.t is another one on the target"),
        ),
        row=CHANGE,
    ),
    Case(
        "key_narrow",
        "CREATE TABLE t (id int, v int, PRIMARY KEY (id, v))",
        "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL)",
        (
            Found(
                BREAKS, APPLY, "key t_pkey of @.t is another one on the target, and may refuse rows that the source has"
            ),
        ),
        row="INSERT INTO t VALUES (1, 1), (1, 2)",
    ),
    Case(
        "key_referred",
        "CREATE TABLE t (id int NOT NULL, k int PRIMARY KEY); CREATE TABLE o (id int PRIMARY KEY, v int REFERENCES t (k))",
        "CREATE TABLE t (id int PRIMARY KEY, k int NOT NULL); CREATE TABLE o (id int PRIMARY KEY, v int REFERENCES t (id))",
        (
            Found(BREAKS, APPLY, "rows of @.t are known by k on the source and by id on the target"),
            Found(
                BREAKS, APPLY, "key t_pkey of @.t is another one on the target, and may refuse rows that the source has"
            ),
            Found(HARMLESS, APPLY, "constraint o_v_fkey of @.o is another one on the target"),
        ),
        row="INSERT INTO t VALUES (1, 1), (1, 2)",
    ),
    Case(
        "key_name",
        "CREATE TABLE t (id int CONSTRAINT mine PRIMARY KEY, v int)",
        "CREATE TABLE t (id int CONSTRAINT yours PRIMARY KEY, v int)",
        (Found(HARMLESS, None, "key mine of @.t is called yours on the target"),),
        row=CHANGE,
    ),
    Case(
        "key_extra",
        "CREATE TABLE t (id int, v int); ALTER TABLE t REPLICA IDENTITY FULL",
        PLAIN,
        (
            Found(BREAKS, APPLY, "key t_pkey of @.t is on the target only, and may refuse rows that the source has"),
            Found(BREAKS, APPLY, "column id of @.t may be NULL on the source only"),
            Found(HARMLESS, APPLY, "@.t has REPLICA IDENTITY FULL on the source and DEFAULT on the target"),
        ),
        row="INSERT INTO t VALUES (1, 1), (1, 2)",
    ),
    Case(
        "key_own",
        "CREATE TABLE t (id int, v int); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 1)",
        "CREATE TABLE t (id int, v int, n serial PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t VALUES (1, 1)",
        (
            Found(BREAKS, None, "rows of @.t are known by all columns on the source and by n on the target"),
            Found(HARMLESS, None, "column n of @.t is on the target only, and stays"),
            Found(HARMLESS, None, "key t_pkey of @.t is on the target only, and stays"),
        ),
        row="UPDATE t SET v = 2",
    ),
    Case(
        "key_partitioned",
        "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL); INSERT INTO t VALUES (1, 1)",
        (
            "CREATE TABLE t (id int, v int, PRIMARY KEY (id, v)) PARTITION BY RANGE (v);"
            " CREATE TABLE t1 PARTITION OF t DEFAULT; INSERT INTO t VALUES (1, 1)"
        ),
        (
            Found(BREAKS, None, "rows of @.t are known by id on the source and by id, v on the target"),
            Found(HARMLESS, None, "@.t is not partitioned on the source and PARTITION BY RANGE (v) on the target"),
            Found(HARMLESS, None, "key t_pkey of @.t is another one on the target"),
        ),
        row="UPDATE t SET v = 2",
    ),
    Case(
        "key_included",
        "CREATE TABLE t (id int, v int NOT NULL, CONSTRAINT t_pkey PRIMARY KEY (id))",
        "CREATE TABLE t (id int, v int NOT NULL, CONSTRAINT t_pkey PRIMARY KEY (id) INCLUDE (v))",
        (
            Found(
                BREAKS, APPLY, "key t_pkey of @.t is another one on the target, and may refuse rows that the source has"
            ),
        ),
    ),
    Case(
        "identity_plain",
        "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX i ON t (id); ALTER TABLE t REPLICA IDENTITY USING INDEX i",
        "CREATE TABLE t (id int NOT NULL); CREATE INDEX i ON t (id)",
        (
            Found(BREAKS, APPLY, "@.t has no primary key on the target"),
            Found(HARMLESS, APPLY, "@.t has REPLICA IDENTITY USING INDEX i on the source and DEFAULT on the target"),
            Found(HARMLESS, APPLY, "index i of @.t is another one on the target"),
        ),
    ),
    Case(
        "identity_nullable",
        "CREATE TABLE t (id int, v int); ALTER TABLE t REPLICA IDENTITY FULL",
        (
            "CREATE TABLE t (id int, v int NOT NULL); CREATE UNIQUE INDEX i ON t (v);"
            " ALTER TABLE t REPLICA IDENTITY USING INDEX i"
        ),
        (
            Found(BREAKS, APPLY, "column v of @.t may be NULL on the source only"),
            Found(BREAKS, APPLY, "index i of @.t is on the target only, and may refuse rows that the source has"),
            Found(HARMLESS, APPLY, "@.t has REPLICA IDENTITY FULL on the source and USING INDEX i on the target"),
        ),
    ),
    Case(
        "identity_renamed",
        "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX i ON t (id); ALTER TABLE t REPLICA IDENTITY USING INDEX i",
        "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX j ON t (id); ALTER TABLE t REPLICA IDENTITY USING INDEX j",
        (Found(HARMLESS, None, "index i of @.t is called j on the target"),),
    ),
    Case(
        "identity_renamed_default",
        "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX i ON t (id); ALTER TABLE t REPLICA IDENTITY USING INDEX i",
        "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX j ON t (id)",
        (
            Found(BREAKS, ADD, "@.t has no primary key on the target"),
            Found(HARMLESS, ADD, "@.t has REPLICA IDENTITY USING INDEX j on the source and DEFAULT on the target"),
            Found(HARMLESS, None, "index i of @.t is called j on the target"),
        ),
    ),
    Case(
        "identity_full",
        PLAIN + "; ALTER TABLE t REPLICA IDENTITY FULL",
        PLAIN,
        (Found(HARMLESS, APPLY, "@.t has REPLICA IDENTITY FULL on the source and DEFAULT on the target"),),
        row=CHANGE,
    ),
    Case(
        "identity_index",
        (
            "CREATE TABLE t (id int NOT NULL, v int, CONSTRAINT u UNIQUE (id)); "
            "ALTER TABLE t REPLICA IDENTITY USING INDEX u"
        ),
        "CREATE TABLE t (id int NOT NULL, v int, CONSTRAINT u UNIQUE (id))",
        (
            Found(BREAKS, ADD, "@.t has no primary key on the target"),
            Found(HARMLESS, ADD, "@.t has REPLICA IDENTITY USING INDEX u on the source and DEFAULT on the target"),
        ),
        row=CHANGE,
    ),
    Case(
        "identity_without",
        (
            "CREATE TABLE t (id int NOT NULL, v int, CONSTRAINT u UNIQUE (id)); "
            "ALTER TABLE t REPLICA IDENTITY USING INDEX u"
        ),
        "CREATE TABLE t (id int NOT NULL, v int)",
        (
            Found(BREAKS, ADD, "constraint u of @.t is missing on the target"),
            Found(BREAKS, ADD, "@.t has no primary key on the target"),
            Found(HARMLESS, ADD, "@.t has REPLICA IDENTITY USING INDEX u on the source and DEFAULT on the target"),
        ),
        row=CHANGE,
    ),
    Case(
        "identity_other",
        "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL UNIQUE)",
        (
            "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL CONSTRAINT t_v_key UNIQUE); "
            "ALTER TABLE t REPLICA IDENTITY USING INDEX t_v_key"
        ),
        (
            Found(BREAKS, APPLY, "rows of @.t are known by id on the source and by v on the target"),
            Found(
                HARMLESS, APPLY, "@.t has REPLICA IDENTITY DEFAULT on the source and USING INDEX t_v_key on the target"
            ),
        ),
        row=CHANGE,
    ),
    Case(
        "identity_new",
        (
            "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL); CREATE UNIQUE INDEX i ON t (v); "
            "ALTER TABLE t REPLICA IDENTITY USING INDEX i"
        ),
        "CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL)",
        (
            Found(BREAKS, APPLY, "rows of @.t are known by v on the source and by id on the target"),
            Found(HARMLESS, ADD, "index i of @.t is missing on the target"),
            Found(HARMLESS, APPLY, "@.t has REPLICA IDENTITY USING INDEX i on the source and DEFAULT on the target"),
        ),
        row="INSERT INTO t VALUES (1, 1); UPDATE t SET id = 2 WHERE v = 1",
    ),
    Case(
        "identity_none",
        "CREATE TABLE t (id int, v int)",
        "CREATE TABLE t (id int, v int)",
        (
            Found(
                PRIMARY,
                None,
                (
                    "UPDATE and DELETE fail on the source: @.t has no replica identity (no primary key), and "
                    "publication everything publishes them"
                ),
            ),
        ),
    ),
    Case(
        "part_lacking",
        PARENT + LOW + HIGH,
        PARENT + LOW,
        (Found(BREAKS, CREATE, "table @.p2 is missing on the target"),),
    ),
    Case(
        "part_lacking_own",
        PARENT + LOW + HIGH,
        PARENT + LOW + "ALTER TABLE p ADD mine text; CREATE INDEX i ON p (mine)",
        (
            Found(BREAKS, CREATE, "table @.p2 is missing on the target"),
            Found(HARMLESS, None, "column mine of @.p is on the target only, and stays"),
            Found(HARMLESS, None, "index i of @.p is on the target only, and stays"),
        ),
    ),
    Case(
        "part_swapped",
        BY_LIST.format(1, 2),
        BY_LIST.format(2, 1),
        (
            Found(
                BREAKS,
                APPLY,
                "@.p1 is partition of @.p FOR VALUES IN (1) on the source and partition of @.p FOR VALUES IN (2) on the target",
            ),
            Found(
                BREAKS,
                APPLY,
                "@.p2 is partition of @.p FOR VALUES IN (2) on the source and partition of @.p FOR VALUES IN (1) on the target",
            ),
        ),
        row="INSERT INTO p VALUES (1)",
        table="p1",
    ),
    Case(
        "part_detached",
        PARENT + LOW,
        PARENT + ALONE,
        (
            Found(
                BREAKS,
                ADD,
                "@.p1 is partition of @.p FOR VALUES FROM (0) TO (100) on the source and no partition on the target",
            ),
        ),
        table="p1",
    ),
    Case(
        "part_attached",
        PARENT + ALONE,
        PARENT + LOW,
        (
            Found(
                BREAKS,
                APPLY,
                "@.p1 is no partition on the source and partition of @.p FOR VALUES FROM (0) TO (100) on the target",
            ),
        ),
        row="INSERT INTO p1 VALUES (700, 1)",
        table="p1",
    ),
    Case("part_extra", PARENT + LOW, PARENT + LOW + HIGH, (), row="INSERT INTO p VALUES (1, 1)", table="p"),
    Case(
        "part_bounds",
        PARENT + WIDE,
        PARENT + LOW,
        (
            Found(
                BREAKS,
                APPLY,
                (
                    "@.p1 is partition of @.p FOR VALUES FROM (0) TO (200) on the source and partition of "
                    "@.p FOR VALUES FROM (0) TO (100) on the target"
                ),
            ),
        ),
        row="INSERT INTO p VALUES (150, 1)",
        table="p1",
    ),
    Case(
        "part_wider",
        PARENT + LOW,
        PARENT + WIDE,
        (
            Found(
                BREAKS,
                APPLY,
                (
                    "@.p1 is partition of @.p FOR VALUES FROM (0) TO (100) on the source and partition of "
                    "@.p FOR VALUES FROM (0) TO (200) on the target"
                ),
            ),
        ),
        table="p1",
    ),
    Case(
        "part_column",
        PARENT + LOW + HIGH + "ALTER TABLE p ADD a int DEFAULT 1",
        PARENT + LOW + HIGH,
        (Found(BREAKS, ADD, "column a of @.p is missing on the target"),),
        row="INSERT INTO p VALUES (150, 1, 7)",
        table="p",
    ),
    Case(
        "part_type",
        "CREATE TABLE p (id int, v bigint, PRIMARY KEY (id)) PARTITION BY RANGE (id);" + LOW + HIGH,
        PARENT + LOW + HIGH,
        (Found(BREAKS, APPLY, "column v of @.p is bigint on the source and integer on the target"),),
        row="INSERT INTO p VALUES (150, 3000000000)",
        table="p",
    ),
    Case(
        "part_index",
        PARENT + LOW + "CREATE INDEX i ON p (v)",
        PARENT + LOW,
        (Found(HARMLESS, CREATE, "index i of @.p is missing on the target"),),
        row="INSERT INTO p VALUES (50, 1)",
        table="p",
    ),
    Case(
        "part_deep",
        DEEP + "CREATE TABLE p1_2 PARTITION OF p1 FOR VALUES FROM (10) TO (20)",
        DEEP,
        (Found(BREAKS, CREATE, "table @.p1_2 is missing on the target"),),
    ),
    Case(
        "part_deep_detached",
        DEEP,
        (
            "CREATE TABLE p (a int, b int, PRIMARY KEY (a, b)) PARTITION BY LIST (a); "
            "CREATE TABLE p1 (a int, b int, PRIMARY KEY (a, b)) PARTITION BY RANGE (b); "
            "CREATE TABLE p1_1 PARTITION OF p1 FOR VALUES FROM (0) TO (10);"
        ),
        (
            Found(
                BREAKS, ADD, "@.p1 is partition of @.p FOR VALUES IN (1) on the source and no partition on the target"
            ),
        ),
        table="p1",
    ),
    Case(
        "part_deep_column",
        DEEP + "CREATE TABLE p_d PARTITION OF p DEFAULT; ALTER TABLE p ADD x text",
        DEEP + "CREATE TABLE p_d PARTITION OF p DEFAULT",
        (Found(BREAKS, ADD, "column x of @.p is missing on the target"),),
        row="INSERT INTO p VALUES (1, 1, 'x'), (2, 2, 'y')",
        table="p",
    ),
    Case(
        "part_by",
        "CREATE TABLE p (id int, v int) PARTITION BY RANGE (v); ALTER TABLE p REPLICA IDENTITY FULL",
        "CREATE TABLE p (id int, v int) PARTITION BY RANGE (id); ALTER TABLE p REPLICA IDENTITY FULL",
        (Found(BREAKS, None, "@.p is PARTITION BY RANGE (v) on the source and PARTITION BY RANGE (id) on the target"),),
    ),
    Case(
        "part_target",
        PLAIN,
        PLAIN + "PARTITION BY HASH (id); CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
        (Found(HARMLESS, None, "@.t is not partitioned on the source and PARTITION BY HASH (id) on the target"),),
    ),
    Case("table_lacking", PLAIN, "", (Found(BREAKS, CREATE, "table @.t is missing on the target"),)),
    Case(
        "table_unlogged",
        PLAIN,
        "CREATE UNLOGGED TABLE t (id int PRIMARY KEY, v int)",
        (Found(BREAKS, APPLY, "@.t is UNLOGGED on the target, so that its rows are gone when the server crashes"),),
    ),
    Case(
        "table_view",
        PLAIN,
        "CREATE VIEW t AS SELECT 1 AS id, 2 AS v",
        (Found(BREAKS, None, "@.t is no table on the target"),),
    ),
    Case(
        "index_lacking",
        TABLE + "CREATE INDEX i ON t (v)",
        TABLE,
        (Found(HARMLESS, CREATE, "index i of @.t is missing on the target"),),
        row=TWICE,
    ),
    Case(
        "index_other",
        TABLE + "CREATE INDEX i ON t (v)",
        TABLE + "CREATE INDEX i ON t (v, w)",
        (Found(HARMLESS, APPLY, "index i of @.t is another one on the target"),),
        row=TWICE,
    ),
    Case(
        "index_partial",
        TABLE + "CREATE INDEX i ON t (v) WHERE w > 0",
        TABLE + "CREATE INDEX i ON t (v)",
        (Found(HARMLESS, APPLY, "index i of @.t is another one on the target"),),
        row=TWICE,
    ),
    Case(
        "index_renamed",
        TABLE + "CREATE INDEX i ON t (v)",
        TABLE + "CREATE INDEX j ON t (v)",
        (Found(HARMLESS, None, "index i of @.t is called j on the target"),),
        row=TWICE,
    ),
    Case(
        "index_extra",
        TABLE,
        TABLE + "CREATE INDEX i ON t (v)",
        (Found(HARMLESS, None, "index i of @.t is on the target only, and stays"),),
        row=TWICE,
    ),
    Case(
        "index_unique_extra",
        TABLE,
        TABLE + "CREATE UNIQUE INDEX i ON t (v)",
        (Found(BREAKS, APPLY, "index i of @.t is on the target only, and may refuse rows that the source has"),),
        row=TWICE,
    ),
    Case(
        "index_unique_lacking",
        TABLE + "CREATE UNIQUE INDEX i ON t (v)",
        TABLE,
        (Found(HARMLESS, CREATE, "index i of @.t is missing on the target"),),
        row="INSERT INTO t VALUES (1, 1, 1)",
    ),
    Case(
        "index_made_unique",
        TABLE + "CREATE INDEX i ON t (v)",
        TABLE + "CREATE UNIQUE INDEX i ON t (v)",
        (Found(BREAKS, APPLY, "index i of @.t is another one on the target, and may refuse rows that the source has"),),
        row=TWICE,
    ),
    Case(
        "index_expression",
        TABLE + "CREATE INDEX i ON t ((v + w))",
        TABLE + "CREATE INDEX i ON t ((v - w))",
        (Found(HARMLESS, APPLY, "index i of @.t is another one on the target"),),
        row=TWICE,
    ),
    Case(
        "unique_lacking",
        TABLE + "ALTER TABLE t ADD CONSTRAINT k UNIQUE (v)",
        TABLE,
        (Found(HARMLESS, CREATE, "constraint k of @.t is missing on the target"),),
        row="INSERT INTO t VALUES (1, 1, 1)",
    ),
    Case(
        "unique_extra",
        TABLE,
        TABLE + "ALTER TABLE t ADD CONSTRAINT k UNIQUE (v)",
        (Found(BREAKS, APPLY, "constraint k of @.t is on the target only, and may refuse rows that the source has"),),
        row=TWICE,
    ),
    Case(
        "unique_other",
        TABLE + "ALTER TABLE t ADD CONSTRAINT k UNIQUE (v, w)",
        TABLE + "ALTER TABLE t ADD CONSTRAINT k UNIQUE (v)",
        (
            Found(
                BREAKS,
                APPLY,
                ("constraint k of @.t is another one on the target, and may refuse rows that the source has"),
            ),
        ),
        row="INSERT INTO t VALUES (1, 1, 1), (2, 1, 2)",
    ),
    Case(
        "check_lacking",
        TABLE + "ALTER TABLE t ADD CONSTRAINT k CHECK (v > 0)",
        TABLE,
        (Found(HARMLESS, CREATE, "constraint k of @.t is missing on the target"),),
        row=TWICE,
    ),
    Case(
        "check_extra",
        TABLE,
        TABLE + "ALTER TABLE t ADD CONSTRAINT k CHECK (w > 0)",
        (Found(BREAKS, APPLY, "constraint k of @.t is on the target only, and may refuse rows that the source has"),),
        row=TWICE,
    ),
    Case(
        "check_other",
        TABLE + "ALTER TABLE t ADD CONSTRAINT k CHECK (v > 0)",
        TABLE + "ALTER TABLE t ADD CONSTRAINT k CHECK (v > 5)",
        (
            Found(
                BREAKS,
                APPLY,
                ("constraint k of @.t is another one on the target, and may refuse rows that the source has"),
            ),
        ),
        row=TWICE,
    ),
    Case(
        "check_knows_null",
        TABLE,
        TABLE + "ALTER TABLE t ADD x int; ALTER TABLE t ADD CONSTRAINT k CHECK (NOT x IS NULL)",
        (
            Found(BREAKS, APPLY, "constraint k of @.t is on the target only, and may refuse rows that the source has"),
            Found(HARMLESS, None, "column x of @.t is on the target only, and stays"),
        ),
        row=TWICE,
    ),
    Case(
        "check_null",
        TABLE,
        TABLE + "ALTER TABLE t ADD x int; ALTER TABLE t ADD CONSTRAINT k CHECK (x > 0)",
        (
            Found(HARMLESS, None, "column x of @.t is on the target only, and stays"),
            Found(HARMLESS, None, "constraint k of @.t is on the target only, and stays"),
        ),
        row=TWICE,
    ),
    Case(
        "check_never",
        TABLE,
        TABLE + "ALTER TABLE t ADD CONSTRAINT k CHECK (false)",
        (Found(BREAKS, APPLY, "constraint k of @.t is on the target only, and may refuse rows that the source has"),),
        row=TWICE,
    ),
    Case(
        "unique_generated",
        TABLE,
        TABLE + "ALTER TABLE t ADD x int GENERATED ALWAYS AS (v * 2) STORED CONSTRAINT k UNIQUE",
        (
            Found(BREAKS, APPLY, "constraint k of @.t is on the target only, and may refuse rows that the source has"),
            Found(HARMLESS, None, "column x of @.t is on the target only, and stays"),
        ),
        row=TWICE,
    ),
    Case(
        "check_renamed",
        TABLE + "ALTER TABLE t ADD CONSTRAINT k CHECK (v > 0)",
        TABLE + "ALTER TABLE t ADD CONSTRAINT l CHECK (v > 0)",
        (Found(HARMLESS, None, "constraint k of @.t is called l on the target"),),
        row=TWICE,
    ),
    Case(
        "check_not_valid",
        TABLE + "ALTER TABLE t ADD CONSTRAINT k CHECK (v > 0)",
        TABLE + "ALTER TABLE t ADD CONSTRAINT k CHECK (v > 0) NOT VALID",
        (Found(HARMLESS, APPLY, "constraint k of @.t is not validated on the target"),),
        row=TWICE,
    ),
    Case(
        "exclude_lacking",
        TABLE + EXCLUDE,
        TABLE,
        (Found(HARMLESS, CREATE, "constraint k of @.t is missing on the target"),),
        row="INSERT INTO t VALUES (1, 1, 1)",
    ),
    Case(
        "exclude_extra",
        TABLE,
        TABLE + EXCLUDE,
        (Found(BREAKS, APPLY, "constraint k of @.t is on the target only, and may refuse rows that the source has"),),
        row=TWICE,
    ),
    Case(
        "foreign_lacking",
        TABLE + OTHER + FOREIGN,
        TABLE + OTHER,
        (Found(HARMLESS, CREATE, "constraint f of @.t is missing on the target"),),
        row="INSERT INTO o VALUES (1); " + TWICE,
    ),
    Case(
        "foreign_extra",
        TABLE + OTHER,
        TABLE + OTHER + FOREIGN,
        (Found(HARMLESS, None, "constraint f of @.t is on the target only, and stays"),),
        row=TWICE,
    ),
    Case(
        "foreign_other",
        TABLE + OTHER + FOREIGN + " ON DELETE CASCADE",
        TABLE + OTHER + FOREIGN,
        (Found(HARMLESS, APPLY, "constraint f of @.t is another one on the target"),),
        row="INSERT INTO o VALUES (1); " + TWICE,
    ),
    Case(
        "sequence_options",
        TABLE + "CREATE SEQUENCE s INCREMENT 2; ALTER TABLE t ALTER w SET DEFAULT nextval('s')",
        TABLE + "CREATE SEQUENCE s INCREMENT 3; ALTER TABLE t ALTER w SET DEFAULT nextval('s')",
        (Found(HARMLESS, APPLY, "sequence @.s has INCREMENT BY 2 on the source and INCREMENT BY 3 on the target"),),
        row="INSERT INTO t VALUES (1, 1)",
    ),
    Case(
        "sequence_lacking",
        TABLE + "CREATE SEQUENCE s INCREMENT 2; ALTER TABLE t ALTER w SET DEFAULT nextval('s')",
        TABLE,
        (Found(HARMLESS, APPLY, "column w of @.t has another default on the target"),),
        row="INSERT INTO t VALUES (1, 1)",
    ),
    Case(
        "sequence_type",
        TABLE + "CREATE SEQUENCE s AS bigint; ALTER TABLE t ALTER w SET DEFAULT nextval('s')",
        TABLE + "CREATE SEQUENCE s AS smallint; ALTER TABLE t ALTER w SET DEFAULT nextval('s')",
        (
            Found(
                HARMLESS,
                APPLY,
                (
                    "sequence @.s has AS bigint MAXVALUE 9223372036854775807 on the source and AS smallint "
                    "MAXVALUE 32767 on the target"
                ),
            ),
        ),
        row="INSERT INTO t VALUES (1, 1)",
    ),
]
