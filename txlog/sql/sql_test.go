package sql_test

import (
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"

	"txmesh/tests/databases"
	"txmesh/txlog"
	shared "txmesh/txlog/sql"
	"txmesh/txlog/txlogtest"
)

var (
	set     databases.Set
	durable = databases.Set{Durable: true} // for tests that take it away
	places  atomic.Int32
)

func TestMain(m *testing.M) {
	code := m.Run()
	set.Close()
	durable.Close()
	os.Exit(code)
}

// kinds are the databases of these tests: each makes an empty place and returns its DSN.
var kinds = []struct {
	name  string
	place func(testing.TB, *databases.Set) string
}{{"postgres", postgresPlace}, {"mariadb", mariadbPlace}}

func postgresPlace(t testing.TB, set *databases.Set) string {
	t.Helper()
	dsn := set.Postgres(t)
	name := fmt.Sprint("place", places.Add(1))
	execute(t, "pgx", dsn, "CREATE SCHEMA "+name)
	return dsn + "&search_path=" + name
}

func mariadbPlace(t testing.TB, set *databases.Set) string {
	t.Helper()
	dsn := set.MariaDB(t)
	name := fmt.Sprint("place", places.Add(1))
	execute(t, "mysql", dsn, "CREATE DATABASE "+name)
	host := dsn[strings.Index(dsn, "(")+1 : strings.Index(dsn, ")")]
	return (&url.URL{Scheme: "mysql", User: url.User("root"), Host: host, Path: "/" + name}).String()
}

func execute(t testing.TB, driver, dsn, query string) {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, o shared.Options) *shared.Engine {
	t.Helper()
	e, err := shared.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestSQLConforms(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			txlogtest.RunShared(t, func(t *testing.T) txlog.Shared {
				e, err := shared.Open(t.Context(), shared.Options{DSN: k.place(t, &set), RetainBytes: txlogtest.RetainBytes})
				if err != nil {
					t.Fatal(err)
				}
				return e
			})
		})
	}
}
