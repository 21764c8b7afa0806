#!/usr/bin/env bash
# The role `hpsearch` owns its database and is no superuser: whoever has its password cannot run programs on the server.
# The superuser `postgres` has no password: it comes in through the socket in the container of `db` only.
#
# Used twice: in /docker-entrypoint-initdb.d for a new database, and as the entry point, which upgrades the volumes of
# earlier versions, whose superuser was called `hpsearch`, before the server starts.
set -Eeuo pipefail
DONE="$PGDATA/hpsearch-role"

statements() {
    local password
    password=$(head -n 1 /run/secrets/database_password | sed "s/'/''/g")
    cat <<SQL
DO \$hpsearch_role\$
DECLARE
    object text;
BEGIN
    SET LOCAL log_min_error_statement = panic; -- no statement with the password in a log
    IF EXISTS (SELECT FROM pg_roles WHERE oid = 10 AND rolname = 'hpsearch') THEN
        -- The first superuser stays one for ever, and cannot be renamed by itself.
        CREATE ROLE hpsearch_upgrade SUPERUSER;
        SET LOCAL SESSION AUTHORIZATION hpsearch_upgrade;
        ALTER ROLE hpsearch RENAME TO postgres;
        SET LOCAL SESSION AUTHORIZATION postgres;
        DROP ROLE hpsearch_upgrade;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'hpsearch') THEN
        CREATE ROLE hpsearch LOGIN PASSWORD '$password';
    END IF;
    ALTER ROLE postgres PASSWORD NULL;
    ALTER DATABASE hpsearch OWNER TO hpsearch;
    FOR object IN SELECT oid::regclass FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm', 'p') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO hpsearch', object);
    END LOOP;
    FOR object IN SELECT oid::regtype FROM pg_type
        WHERE typnamespace = 'public'::regnamespace AND typtype IN ('e', 'd') LOOP
        EXECUTE format('ALTER TYPE %s OWNER TO hpsearch', object);
    END LOOP;
END \$hpsearch_role\$;

SQL
}

if [ "${BASH_SOURCE[0]}" != "$0" ] || [ $# -eq 0 ]; then
    statements | psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname=hpsearch
    touch "$DONE"
else
    if [ -s "$PGDATA/PG_VERSION" ] && [ ! -e "$DONE" ]; then
        echo "the role hpsearch becomes an ordinary one"
        statements | postgres --single -j -c exit_on_error=on -D "$PGDATA" hpsearch >/dev/null
        touch "$DONE"
    fi
    exec docker-entrypoint.sh "$@"
fi
