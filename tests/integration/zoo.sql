-- zoo.sql: one of everything that a table can hold, have or need, to be copied
--
-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- Loaded by a superuser with psql into an empty database, PostgreSQL 13 to 18. Everything in it is a table, or is needed by
-- one, so that a copy of all tables is a copy of all definitions.

SET client_encoding = 'UTF8';
SET client_min_messages = warning;
SET check_function_bodies = on;

SELECT :SERVER_VERSION_NUM >= 140000 AS pg14, :SERVER_VERSION_NUM >= 150000 AS pg15, :SERVER_VERSION_NUM >= 170000 AS pg17,
       :SERVER_VERSION_NUM >= 180000 AS pg18
\gset

CREATE SCHEMA ext;
CREATE EXTENSION citext;
CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION btree_gist SCHEMA ext;
CREATE SCHEMA zoo;

-- Types

CREATE TYPE zoo.mood AS ENUM ('sad', 'so so', 'it''s "fine"', 'glücklich', '');
ALTER TYPE zoo.mood ADD VALUE 'calm' BEFORE 'so so';
CREATE DOMAIN zoo.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN zoo.small AS zoo.positive DEFAULT 1 CONSTRAINT below_100 CHECK (VALUE < 100);
CREATE DOMAIN zoo.moods AS zoo.mood[] CONSTRAINT at_most_three CHECK (cardinality(VALUE) <= 3);
CREATE COLLATION zoo.plain FROM "C";
CREATE DOMAIN zoo.word AS text COLLATE zoo.plain NOT NULL DEFAULT 'none';
CREATE TYPE zoo.size AS (width numeric(8, 2), height zoo.small, mood zoo.mood, words text[] COLLATE zoo.plain);
CREATE DOMAIN zoo.big_size AS zoo.size CHECK ((VALUE).width > 1);
CREATE TYPE zoo.float_range AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TYPE zoo.typed AS (id int, name text);

-- Functions that tables need

CREATE FUNCTION zoo.next_tag() RETURNS text LANGUAGE sql VOLATILE AS $$ SELECT 'tag ' || floor(random() * 1e6)::int $$;
CREATE FUNCTION zoo.twice(int) RETURNS int LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE COST 7 AS 'SELECT $1 * 2';
CREATE FUNCTION zoo.is_tame(mood zoo.mood, strict boolean DEFAULT false) RETURNS boolean LANGUAGE plpgsql IMMUTABLE
    SET search_path = pg_catalog AS $$ BEGIN RETURN mood::text <> 'sad' OR NOT strict; END $$;

-- Every type of column, and every odd value

CREATE TABLE zoo.types (
    id              int PRIMARY KEY,
    c_bool          boolean,
    c_int2          int2,
    c_int8          int8,
    c_float4        float4,
    c_float8        float8,
    c_numeric       numeric,
    c_numeric_tight numeric(20, 5),
    c_money         money,
    c_text          text,
    c_varchar       varchar(40),
    c_char          char(12),
    c_one           "char",
    c_name          name,
    c_citext        citext,
    c_bytea         bytea,
    c_bit           bit(11),
    c_varbit        varbit(40),
    c_date          date,
    c_time          time(3),
    c_timetz        timetz,
    c_timestamp     timestamp,
    c_timestamptz   timestamptz,
    c_interval      interval,
    c_seconds       interval day to second (3),
    c_uuid          uuid,
    c_inet          inet,
    c_cidr          cidr,
    c_macaddr       macaddr,
    c_macaddr8      macaddr8,
    c_json          json,
    c_jsonb         jsonb,
    c_jsonpath      jsonpath,
    c_xml           xml,
    c_hstore        ext.hstore,
    c_tsvector      tsvector,
    c_tsquery       tsquery,
    c_point         point,
    c_line          line,
    c_lseg          lseg,
    c_box           box,
    c_path          path,
    c_polygon       polygon,
    c_circle        circle,
    c_lsn           pg_lsn,
    c_oid           oid,
    c_tid           tid,
    c_regtype       regtype,
    c_acl           aclitem,
    c_snapshot      pg_snapshot,
    c_int4range     int4range,
    c_numrange      numrange,
    c_tstzrange     tstzrange,
    c_floatrange    zoo.float_range,
    c_mood          zoo.mood,
    c_moods         zoo.moods,
    c_mood_array    zoo.mood[],
    c_small         zoo.small,
    c_word          zoo.word,
    c_size          zoo.size,
    c_sizes         zoo.size[],
    c_big_size      zoo.big_size,
    c_ints          int[],
    c_matrix        float8[][],
    c_texts         text[],
    c_hstores       ext.hstore[],
    c_dates         date[],
    c_jsons         jsonb[]
\if :pg14
    , c_multirange  int4multirange, c_floatranges zoo.float_multirange
\endif
);
\set text1 'E''back\\\\slash \\\\N \\\\. tab\\t newline\\nreturn\\r "double" ''''single'''' ü€😀'''
INSERT INTO zoo.types (id, c_bool, c_int2, c_int8, c_float4, c_float8, c_numeric, c_numeric_tight, c_money, c_text, c_varchar,
    c_char, c_one, c_name, c_citext, c_bytea, c_bit, c_varbit, c_date, c_time, c_timetz, c_timestamp, c_timestamptz, c_interval,
    c_seconds, c_uuid, c_inet, c_cidr, c_macaddr, c_macaddr8, c_json, c_jsonb, c_jsonpath, c_xml, c_hstore, c_tsvector,
    c_tsquery, c_point, c_line, c_lseg, c_box, c_path, c_polygon, c_circle, c_lsn, c_oid, c_tid, c_regtype, c_acl, c_snapshot,
    c_int4range, c_numrange, c_tstzrange, c_floatrange, c_mood, c_moods, c_mood_array, c_small, c_word, c_size, c_sizes,
    c_big_size, c_ints, c_matrix, c_texts, c_hstores, c_dates, c_jsons)
VALUES (1, true, -32768, 9223372036854775807, 'NaN', '-Infinity', 'NaN', 12345.67890, 1234.56, :text1, '\N', 'x  ', 'c',
    'a Name', 'CiText', '\x00ff5c0a27', B'10101010101', B'101', 'infinity', '23:59:59.999', '12:00+14:59', '-infinity',
    'infinity', '-1 mon +3 days -04:05:06.789', '1 day 2.123', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '::1/64', '10.0.0.0/8',
    '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '{"a" : 1, "a": [ null,"\u00fc" ]}', '{"a": [1, null, "\"x"]}',
    '$.a[*] ? (@ > 1)', '<a b="c">text &amp; <d/></a>', 'a=>1, "b c"=>NULL, d=>""', '''a''''s'':1A fat:2,4C', 'fat & (cat | !rat:*A)',
    '(1,NaN)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,2)]', '((0,0),(1,1),(2,0))', '<(1,2),3>', '16/B374D848',
    4294967295, '(7,8)', 'character varying', 'postgres=r*w/postgres', '10:20:10,14,15', '[3,7)', '(,1.5]',
    '[-infinity,2026-01-01 00:00+00)', '[0.1,0.2]', 'it''s "fine"', '{sad,calm}', '{glücklich,NULL,""}', 99, 'wörd',
    '(1.50,7,sad,"{a,NULL,\"b,c\"}")', ARRAY['(2,3,calm,)', NULL]::zoo.size[], '(2,3,,)', '[0:2]={1,NULL,3}', '{{1,NaN},{3,4}}',
    '{"",NULL,"NULL","a,b","c\\d"}', '{"a=>1"}', '{infinity,NULL}', ARRAY['{"a": "b,c"}', 'null', NULL]::jsonb[]),
 (2, false, 0, -1, '-0', '-0', 'NaN', -1, -0.01, '', '', '', '', '', '', '', B'00000000000', B'', '4713-01-01 BC', '24:00',
    '00:00-15:00', '0001-01-01 BC', '1900-01-01 00:00:00+00', '0', '0', '00000000-0000-0000-0000-000000000000', '1.2.3.4',
    '::/0', '00:00:00:00:00:00', '00:00:00:00:00:00:00:00', 'null', 'null', '$', '', '', '', '', '(0,-0)', '{0,1,0}', '[(0,0),(0,0)]',
    '(0,0),(0,0)', '((0,0))', '((0,0))', '<(0,0),0>', '0/0', 0, '(0,1)', '-', '=/postgres', '1:1:', 'empty', 'empty', '(,)',
    'empty', '', '{}', '{}', 1, '', '(,,,)', '{}', NULL, '{}', '{}', '{}', '{}', '{}', '{}');
INSERT INTO zoo.types (id, c_word) SELECT g, 'all NULL' FROM generate_series(3, 5) AS g;
INSERT INTO zoo.types (id, c_word, c_text, c_float8, c_numeric, c_timestamptz, c_bytea, c_small, c_mood)
    SELECT g, 'row', repeat(chr(32 + g % 90), g % 60), sqrt(g), g::numeric ^ 20, timestamptz '2026-01-01' + g * interval '77 min',
           decode(md5(g::text), 'hex'), 1 + g % 99, (enum_range(NULL::zoo.mood))[1 + g % 6]
    FROM generate_series(6, 400) AS g;
\if :pg14
UPDATE zoo.types SET c_multirange = '{[1,3),[5,)}', c_floatranges = '{[0.5,1.5]}', c_numeric = 'Infinity' WHERE id = 1;
\endif

-- Values that are kept out of line, compressed and not

CREATE TABLE zoo.toast (
    id int PRIMARY KEY, squeezed text, flat text, outside bytea, main text
);
ALTER TABLE zoo.toast ALTER flat SET STORAGE EXTERNAL, ALTER outside SET STORAGE EXTERNAL, ALTER main SET STORAGE MAIN,
    ALTER squeezed SET STATISTICS 500, ALTER flat SET (n_distinct = -0.5), ALTER id SET (n_distinct_inherited = 7);
ALTER TABLE zoo.toast SET (fillfactor = 70, autovacuum_enabled = false, toast.autovacuum_vacuum_threshold = 99);
\if :pg14
ALTER TABLE zoo.toast ALTER squeezed SET COMPRESSION pglz;
\endif
INSERT INTO zoo.toast SELECT g, repeat('squeeze ' || g, 5000), repeat(md5(g::text), 300), decode(repeat(md5(g::text), 600), 'hex'),
                             repeat(md5(g::text), 20) FROM generate_series(1, 20) AS g;

-- Identity, serial, generated, standalone sequences, dropped columns

CREATE SEQUENCE zoo.shared_seq AS int START 7 INCREMENT BY 3 MINVALUE 4 MAXVALUE 100000 CACHE 5 CYCLE;
CREATE TABLE zoo.counted (
    always_id       bigint GENERATED ALWAYS AS IDENTITY (START WITH 100 INCREMENT BY 10 CACHE 3) PRIMARY KEY,
    gone_1          text,
    by_default      int GENERATED BY DEFAULT AS IDENTITY (SEQUENCE NAME zoo."By Default's"),
    serial_id       smallserial,
    gone_2          zoo.mood DEFAULT 'sad',
    shared          int DEFAULT nextval('zoo.shared_seq'),
    tag             text NOT NULL DEFAULT zoo.next_tag(),
    doubled         int GENERATED ALWAYS AS (zoo.twice(shared)) STORED,
    late            date DEFAULT '2026-02-03'
);
INSERT INTO zoo.counted (gone_1) SELECT 'x' FROM generate_series(1, 50);
ALTER TABLE zoo.counted DROP gone_1, DROP gone_2;
ALTER TABLE zoo.counted ADD added int DEFAULT 42, ADD added_null int[];
INSERT INTO zoo.counted DEFAULT VALUES;
DELETE FROM zoo.counted WHERE always_id = 120;
CREATE TABLE zoo.counted_too (id int DEFAULT nextval('zoo.shared_seq'), never bigserial);
\if :pg18
CREATE TABLE zoo.virtual (id int PRIMARY KEY, plus_one int GENERATED ALWAYS AS (id + 1) VIRTUAL, CONSTRAINT has_id NOT NULL id);
INSERT INTO zoo.virtual SELECT generate_series(1, 9);
CREATE TABLE zoo.lent (id int, during daterange, PRIMARY KEY (id, during WITHOUT OVERLAPS),
                       CONSTRAINT odd CHECK (id % 2 = 1) NOT ENFORCED);
INSERT INTO zoo.lent VALUES (1, '[2026-01-01,2026-02-01)'), (2, '[2026-01-01,2026-02-01)');
\endif

-- Partitions in two levels, of other column orders and in other schemas

CREATE SCHEMA "Zoo's Ünder.World";
CREATE TABLE zoo.visits (
    at date NOT NULL, kind text COLLATE zoo.plain NOT NULL, gone int, id bigserial, price numeric DEFAULT 5, note text,
    CONSTRAINT visits_pkey PRIMARY KEY (id, at, kind)
) PARTITION BY RANGE (at);
ALTER TABLE zoo.visits DROP gone;
CREATE TABLE zoo.visits_1 PARTITION OF zoo.visits FOR VALUES FROM (MINVALUE) TO ('2026-02-01') PARTITION BY LIST (kind);
CREATE TABLE zoo.visits_1_ab PARTITION OF zoo.visits_1 (price DEFAULT 6, CONSTRAINT cheap CHECK (price < 1000))
    FOR VALUES IN ('a', 'b') WITH (fillfactor = 90);
CREATE TABLE "Zoo's Ünder.World"."1.rest" PARTITION OF zoo.visits_1 DEFAULT;
CREATE TABLE zoo.visits_2 (note text, id bigint NOT NULL, kind text COLLATE zoo.plain NOT NULL, price numeric, at date NOT NULL)
    PARTITION BY HASH (id);
CREATE TABLE zoo.visits_2_0 PARTITION OF zoo.visits_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE zoo.visits_2_1 PARTITION OF zoo.visits_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
ALTER TABLE zoo.visits ATTACH PARTITION zoo.visits_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
CREATE TABLE zoo.visits_rest PARTITION OF zoo.visits DEFAULT;
CREATE INDEX visits_note ON zoo.visits (note) INCLUDE (price);
CREATE INDEX visits_only ON ONLY zoo.visits (price);
CREATE INDEX visits_ab_own ON zoo.visits_1_ab (lower(note)) WHERE price > 3;
INSERT INTO zoo.visits (at, kind, note)
    SELECT date '2026-01-01' + g % 80, substr('abcd', 1 + g % 4, 1), nullif(repeat('n', g % 5), '') FROM generate_series(1, 500) AS g;

-- Inheritance

CREATE TABLE zoo.animals (id int PRIMARY KEY, name text DEFAULT 'beast', born date, CONSTRAINT named CHECK (name <> ''));
CREATE TABLE zoo.swimmers (fins int, CONSTRAINT has_fins CHECK (fins >= 0) NO INHERIT);
CREATE TABLE zoo.fish (name text DEFAULT 'fish', scaly boolean, PRIMARY KEY (id)) INHERITS (zoo.animals, zoo.swimmers);
CREATE TABLE zoo.trout (weight real) INHERITS (zoo.fish);
ALTER TABLE zoo.animals ADD legs int DEFAULT 4;
INSERT INTO zoo.animals SELECT g, 'animal ' || g, date '2020-01-01' + g FROM generate_series(1, 60) AS g;
INSERT INTO zoo.fish SELECT g, 'fish ' || g, NULL, g, g % 2 = 0 FROM generate_series(61, 90) AS g;
INSERT INTO zoo.trout (id, weight) SELECT g, g / 3.0 FROM generate_series(91, 99) AS g;
CREATE TABLE zoo.history (id int, old zoo.animals, olds zoo.animals[]);
INSERT INTO zoo.history SELECT a.id, a, ARRAY[a, NULL] FROM ONLY zoo.animals AS a WHERE a.id < 9;
CREATE TABLE zoo.of_type OF zoo.typed (PRIMARY KEY (id), name WITH OPTIONS DEFAULT 'typed');
INSERT INTO zoo.of_type VALUES (1, 'one'), (2, NULL);

-- Keys and constraints

SET search_path = pg_catalog, ext;
CREATE TABLE zoo.staff (
    id int PRIMARY KEY, boss int CONSTRAINT staff_boss REFERENCES zoo.staff ON DELETE SET NULL DEFERRABLE, cage int, shift tstzrange,
    badge text CONSTRAINT badge_once UNIQUE DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT one_shift EXCLUDE USING gist (cage WITH =, shift WITH &&) WHERE (cage > 0) DEFERRABLE
);
RESET search_path;
CREATE TABLE zoo.cages (id int PRIMARY KEY, keeper int NOT NULL, area box,
    CONSTRAINT apart EXCLUDE USING gist (area WITH &&));
INSERT INTO zoo.staff SELECT g, nullif(g / 2, 0), g, '[2026-01-01,2026-01-02)', 'badge ' || g FROM generate_series(1, 40) AS g;
INSERT INTO zoo.cages SELECT g, g, box(point(g * 10, 0), point(g * 10 + 5, 5)) FROM generate_series(1, 40) AS g;
ALTER TABLE zoo.staff ADD CONSTRAINT staff_cage FOREIGN KEY (cage) REFERENCES zoo.cages DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE zoo.cages ADD CONSTRAINT cages_keeper FOREIGN KEY (keeper) REFERENCES zoo.staff ON UPDATE CASCADE,
    ADD CONSTRAINT later CHECK (id > 5) NOT VALID;
CREATE TABLE zoo.seen (visit bigint, at date, kind text COLLATE zoo.plain, who int,
    CONSTRAINT seen_visit FOREIGN KEY (visit, at, kind) REFERENCES zoo.visits MATCH FULL ON DELETE CASCADE);
INSERT INTO zoo.seen SELECT id, at, kind, 1 + id % 40 FROM zoo.visits WHERE id % 3 = 0;
INSERT INTO zoo.seen SELECT NULL, NULL, NULL, 99;
ALTER TABLE zoo.seen ADD CONSTRAINT seen_who FOREIGN KEY (who) REFERENCES zoo.staff NOT VALID;
ALTER TABLE zoo.visits ADD staff int;
ALTER TABLE zoo.visits ADD CONSTRAINT visits_staff FOREIGN KEY (staff) REFERENCES zoo.staff;
UPDATE zoo.visits SET staff = 1 + id % 40 WHERE id % 2 = 0;
\if :pg15
CREATE TABLE zoo.fifteen (a int, b int, CONSTRAINT no_two_nulls UNIQUE NULLS NOT DISTINCT (a, b), boss int, cage int,
    CONSTRAINT half_null FOREIGN KEY (boss) REFERENCES zoo.staff ON DELETE SET NULL (boss));
CREATE UNIQUE INDEX fifteen_cage ON zoo.fifteen (cage) NULLS NOT DISTINCT;
INSERT INTO zoo.fifteen VALUES (1, NULL, 1, 1), (NULL, NULL, 2, NULL);
\endif

-- Indexes

CREATE TABLE zoo.indexed (id int NOT NULL, code text NOT NULL, body tsvector, doc jsonb, n int, spot point, mood zoo.mood);
INSERT INTO zoo.indexed SELECT g, 'code ' || g, to_tsvector('simple', 'word' || g % 7), jsonb_build_object('n', g), g % 50,
                               point(g, g), 'sad' FROM generate_series(1, 300) AS g;
CREATE UNIQUE INDEX indexed_identity ON zoo.indexed (code);
CREATE UNIQUE INDEX indexed_cover ON zoo.indexed (id DESC NULLS LAST) INCLUDE (n, mood) WITH (fillfactor = 60);
CREATE INDEX indexed_partial ON zoo.indexed (n, (doc ->> 'n') COLLATE zoo.plain text_pattern_ops) WHERE n > 10 AND mood = 'sad';
CREATE INDEX indexed_expression ON zoo.indexed ((id + n), (zoo.twice(n)));
ALTER INDEX zoo.indexed_expression ALTER COLUMN 1 SET STATISTICS 321;
CREATE INDEX indexed_gin ON zoo.indexed USING gin (body) WITH (fastupdate = off);
CREATE INDEX indexed_path ON zoo.indexed USING gin (doc jsonb_path_ops);
CREATE INDEX indexed_gist ON zoo.indexed USING gist (body tsvector_ops (siglen = 200));
CREATE INDEX indexed_spgist ON zoo.indexed USING spgist (spot kd_point_ops);
CREATE INDEX indexed_hash ON zoo.indexed USING hash (code);
CREATE INDEX indexed_brin ON zoo.indexed USING brin (id) WITH (pages_per_range = 4, autosummarize = on);
ALTER TABLE zoo.indexed REPLICA IDENTITY USING INDEX indexed_identity;
ALTER TABLE zoo.indexed CLUSTER ON indexed_cover;
CREATE STATISTICS zoo.indexed_stats (ndistinct, dependencies) ON n, code FROM zoo.indexed;
CREATE STATISTICS "Zoo's Ünder.World"."moods.seen" (mcv) ON n, mood FROM zoo.indexed;
CREATE SCHEMA zoo_statistics; -- and nothing else in it
CREATE STATISTICS zoo_statistics.alone ON id, n FROM zoo.indexed;
ALTER STATISTICS zoo.indexed_stats SET STATISTICS 77;
\if :pg14
CREATE STATISTICS zoo.indexed_expression_stats ON (n + 1), (lower(code)) FROM zoo.indexed;
\endif
ALTER TABLE zoo.types REPLICA IDENTITY FULL;
ALTER TABLE zoo.toast REPLICA IDENTITY NOTHING;

-- Triggers, rules and row security

CREATE FUNCTION zoo.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN coalesce(NEW, OLD); END $$;
CREATE FUNCTION zoo.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no row may be copied with triggers on'; END $$;
CREATE TABLE zoo.guarded (id int PRIMARY KEY, owner name DEFAULT current_user, secret text);
INSERT INTO zoo.guarded SELECT g, 'postgres', 'secret ' || g FROM generate_series(1, 30) AS g;
CREATE TRIGGER guarded_row BEFORE INSERT OR UPDATE OF secret ON zoo.guarded FOR EACH ROW WHEN (NEW.id > 3) EXECUTE FUNCTION zoo.refuse();
CREATE TRIGGER guarded_statement AFTER INSERT ON zoo.guarded FOR EACH STATEMENT EXECUTE FUNCTION zoo.refuse('an argument', 'it''s');
CREATE TRIGGER guarded_table AFTER UPDATE ON zoo.guarded REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION zoo.note();
CREATE TRIGGER guarded_always BEFORE DELETE ON zoo.guarded FOR EACH ROW EXECUTE FUNCTION zoo.note();
CREATE TRIGGER guarded_replica BEFORE TRUNCATE ON zoo.guarded EXECUTE FUNCTION zoo.note();
CREATE TRIGGER guarded_off BEFORE DELETE ON zoo.guarded FOR EACH ROW EXECUTE FUNCTION zoo.note();
CREATE CONSTRAINT TRIGGER guarded_later AFTER INSERT ON zoo.guarded DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION zoo.refuse();
ALTER TABLE zoo.guarded ENABLE ALWAYS TRIGGER guarded_always, ENABLE REPLICA TRIGGER guarded_replica, DISABLE TRIGGER guarded_off;
CREATE TRIGGER visits_row AFTER INSERT ON zoo.visits FOR EACH ROW EXECUTE FUNCTION zoo.note();
CREATE TABLE zoo.ruled (id int, n int);
INSERT INTO zoo.ruled SELECT g, g FROM generate_series(1, 10) AS g;
CREATE TABLE zoo.ruled_log (id int, at timestamptz DEFAULT now());
CREATE RULE ruled_keep AS ON DELETE TO zoo.ruled WHERE OLD.id < 5 DO INSTEAD NOTHING;
CREATE RULE ruled_log AS ON INSERT TO zoo.ruled DO ALSO INSERT INTO zoo.ruled_log VALUES (NEW.id);
CREATE RULE ruled_off AS ON UPDATE TO zoo.ruled DO ALSO NOTIFY zoo;
ALTER TABLE zoo.ruled DISABLE RULE ruled_off;
ALTER TABLE zoo.guarded ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON zoo.guarded USING (owner = current_user) WITH CHECK (id > 0);
CREATE POLICY watch ON zoo.guarded AS RESTRICTIVE FOR SELECT TO pg_monitor
    USING (id IN (SELECT s.id FROM zoo.staff AS s WHERE zoo.is_tame('calm')));
CREATE TABLE zoo.half_guarded (id int);
CREATE POLICY sleeping ON zoo.half_guarded FOR INSERT WITH CHECK (true);

-- Little and much

CREATE TABLE zoo.empty (id int PRIMARY KEY, t text);
CREATE TABLE zoo.keyless (a int, b text);
INSERT INTO zoo.keyless SELECT g % 3, 'twice' FROM generate_series(1, 99) AS g;
CREATE TABLE zoo.nothing ();
INSERT INTO zoo.nothing DEFAULT VALUES;
INSERT INTO zoo.nothing DEFAULT VALUES;
CREATE TABLE zoo.bare ();
CREATE TABLE zoo.all_gone (a int);
INSERT INTO zoo.all_gone SELECT generate_series(1, 5);
ALTER TABLE zoo.all_gone DROP a;
SELECT format('CREATE TABLE zoo.wide (id int PRIMARY KEY, %s)', string_agg(format('%s%s %s', 'c', g, t), ', '))
FROM generate_series(1, 1200) AS g, LATERAL (SELECT (ARRAY['boolean', 'int2', 'text', 'real'])[1 + g % 4]) AS x (t)
\gexec
SELECT format('INSERT INTO zoo.wide (id, %s) SELECT g, %s FROM generate_series(1, 30) AS g', string_agg('c' || g, ', '),
              string_agg(CASE g % 4 WHEN 0 THEN 'g % 2 = 0' WHEN 1 THEN 'g' WHEN 2 THEN $$'x'$$ ELSE 'NULL' END, ', '))
FROM generate_series(1, 1200) AS g
\gexec

-- Names

CREATE SCHEMA "new
line";
CREATE TYPE "new
line"."a.Type" AS ENUM ('1', '2
3');
CREATE DOMAIN "new
line"."$do main$" AS text CONSTRAINT "c.h
e'c""k" CHECK (VALUE <> 'no');
CREATE SEQUENCE "new
line"."se'qu.ence";
CREATE FUNCTION "new
line"."a.Fun""ction"() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TABLE "new
line"."Ta""ble.with ''all'' ""of
it"" %s %(x)s \ {{ y }} ;--" (
    "se""lect" int DEFAULT nextval($$"new
line"."se'qu.ence"$$) CONSTRAINT "p.k
""ey'" PRIMARY KEY,
    "Spalte, größer" "new
line"."a.Type",
    "a.b\c" "new
line"."$do main$"[],
    " " text,
    "new
line" text CONSTRAINT "un'i.que
" UNIQUE,
    "%s" text,
    "$1" int CONSTRAINT "f.k ""e
y" REFERENCES "new
line"."Ta""ble.with ''all'' ""of
it"" %s %(x)s \ {{ y }} ;--"
);
INSERT INTO "new
line"."Ta""ble.with ''all'' ""of
it"" %s %(x)s \ {{ y }} ;--" ("Spalte, größer", "a.b\c", " ", "new
line", "%s", "$1") SELECT '2
3', ARRAY['x,y', NULL], ' ', 'line ' || g, '%s', g FROM generate_series(1, 20) AS g;
CREATE INDEX "i.n
d'e""x" ON "new
line"."Ta""ble.with ''all'' ""of
it"" %s %(x)s \ {{ y }} ;--" (" ", upper("new
line"));
CREATE STATISTICS "new
line"."s'ta.
ts" ON " ", "%s" FROM "new
line"."Ta""ble.with ''all'' ""of
it"" %s %(x)s \ {{ y }} ;--";
CREATE TRIGGER "tr.i
g'g""er" BEFORE UPDATE ON "new
line"."Ta""ble.with ''all'' ""of
it"" %s %(x)s \ {{ y }} ;--" FOR EACH ROW EXECUTE FUNCTION "new
line"."a.Fun""ction"();
CREATE POLICY "po.l
i'c""y" ON "new
line"."Ta""ble.with ''all'' ""of
it"" %s %(x)s \ {{ y }} ;--" USING (" " = current_setting('x.y', true));
CREATE RULE "ru.l
e'""" AS ON DELETE TO "new
line"."Ta""ble.with ''all'' ""of
it"" %s %(x)s \ {{ y }} ;--" DO INSTEAD NOTHING;
CREATE TABLE "Zoo's Ünder.World"."Größe 象 🐘" ("Ünïcödé" serial PRIMARY KEY, "SELECT" text);
INSERT INTO "Zoo's Ünder.World"."Größe 象 🐘" ("SELECT") SELECT '象' FROM generate_series(1, 10);
CREATE TABLE "Zoo's Ünder.World".sixty_three_bytes_long_so_that_nothing_can_be_put_in_front_of_it (
    sixty_three_bytes_long_so_that_nothing_can_be_put_in_front_of_i int
        CONSTRAINT sixty_three_bytes_long_so_that_nothing_can_be_put_in_front_of_k UNIQUE);
INSERT INTO "Zoo's Ünder.World".sixty_three_bytes_long_so_that_nothing_can_be_put_in_front_of_it VALUES (1), (NULL);
CREATE TABLE public.types (id int PRIMARY KEY, here text DEFAULT 'another schema''s');
INSERT INTO public.types VALUES (1);

-- A comment on everything, that pg_dump shows

SELECT format('COMMENT ON %s %s IS %L', CASE i.type WHEN 'table column' THEN 'COLUMN' WHEN 'table constraint' THEN 'CONSTRAINT'
        WHEN 'statistics object' THEN 'STATISTICS' WHEN 'composite type' THEN 'TYPE' ELSE upper(i.type) END,
        i.identity, format(E'On %s %s\nit''s "said" \\ %%s ü', i.type, i.identity))
FROM (
    SELECT 'pg_class'::regclass, oid, 0, relnamespace FROM pg_class WHERE relkind IN ('r', 'p', 'S', 'i', 'I')
    UNION ALL SELECT 'pg_class'::regclass, attrelid, attnum, relnamespace FROM pg_attribute JOIN pg_class AS c ON c.oid = attrelid
        WHERE relkind IN ('r', 'p') AND attnum BETWEEN 1 AND 20 AND NOT attisdropped
        AND attname <> 'legs' -- pg_dump puts a column that the parent got later in another place
    UNION ALL SELECT 'pg_constraint'::regclass, oid, 0, connamespace FROM pg_constraint
        WHERE conrelid <> 0 AND conislocal AND coninhcount = 0 AND contype NOT IN ('n', 't')
    UNION ALL SELECT 'pg_trigger'::regclass, t.oid, 0, relnamespace FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = tgrelid
        WHERE NOT tgisinternal AND NOT relispartition
    UNION ALL SELECT 'pg_rewrite'::regclass, t.oid, 0, relnamespace FROM pg_rewrite AS t JOIN pg_class AS c ON c.oid = ev_class
    UNION ALL SELECT 'pg_policy'::regclass, t.oid, 0, relnamespace FROM pg_policy AS t JOIN pg_class AS c ON c.oid = polrelid
    UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, 0, stxnamespace FROM pg_statistic_ext
    UNION ALL SELECT 'pg_proc'::regclass, p.oid, 0, pronamespace FROM pg_proc AS p
        WHERE NOT EXISTS (SELECT FROM pg_type JOIN pg_range ON rngtypid = pg_type.oid WHERE typname = proname AND typnamespace = pronamespace)
          AND proname NOT LIKE 'float_multirange'
    UNION ALL SELECT 'pg_collation'::regclass, oid, 0, collnamespace FROM pg_collation
    UNION ALL SELECT 'pg_type'::regclass, oid, 0, typnamespace FROM pg_type AS t
        WHERE typtype IN ('e', 'd', 'r') OR typtype = 'c' AND (SELECT relkind FROM pg_class WHERE oid = typrelid) = 'c'
    UNION ALL SELECT 'pg_namespace'::regclass, oid, 0, oid FROM pg_namespace WHERE nspname NOT IN ('public', 'ext')
) AS o (class, oid, sub, namespace), LATERAL pg_identify_object(class, oid, sub) AS i, pg_namespace AS n
WHERE n.oid = o.namespace AND n.nspname !~ '^(pg_|information_schema$|ext$)' AND (o.oid >= 16384)
  AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = class AND d.objid = o.oid AND d.deptype = 'e')
\gexec
COMMENT ON CONSTRAINT below_100 ON DOMAIN zoo.small IS 'On a domain''s constraint';
COMMENT ON COLUMN zoo.size.width IS 'On a type''s column';

-- Where the sequences go on

SELECT setval('zoo.shared_seq', 70, false), nextval('zoo."By Default''s"'), setval('zoo.counted_too_never_seq', 5000);
ANALYZE;
