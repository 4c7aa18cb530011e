package main

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/tests/databases"
)

// store is one that runs.
type store struct {
	kind    string
	version string
	unit    string
	place   func(name string) (address string, err error) // an empty one for the sidecars of a cell
	count   func() (int64, error)                         // in its unit, so far
}

// host stands in for a test where stores are started. Only what package databases calls is there.
type host struct {
	testing.TB
	cleanups []func()
}

func (h *host) Helper()                        {}
func (h *host) Cleanup(f func())               { h.cleanups = append(h.cleanups, f) }
func (h *host) Fatal(args ...any)              { fatal(fmt.Errorf("%s", fmt.Sprint(args...))) }
func (h *host) Fatalf(text string, a ...any)   { fatal(fmt.Errorf(text, a...)) }
func (h *host) Skipf(text string, args ...any) { fatal(fmt.Errorf(text, args...)) }

func (h *host) close() {
	for i := range h.cleanups {
		h.cleanups[len(h.cleanups)-1-i]()
	}
}

func start(h *host, kind string) (*store, error) {
	switch kind {
	case "badger":
		return &store{kind: kind, version: "Badger in the sidecar", place: func(string) (string, error) { return "badger", nil },
			count: func() (int64, error) { return 0, nil }}, nil
	case "etcd":
		return etcd(h, kind, 1)
	case "etcd3":
		return etcd(h, kind, 3)
	case "postgres":
		return postgres(h)
	}
	return nil, fmt.Errorf("-stores %q: want badger, etcd, etcd3 or postgres", kind)
}

func etcd(h *host, kind string, members int) (*store, error) {
	endpoints := databases.StartEtcd(h, members).Endpoints()
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints})
	if err != nil {
		return nil, err
	}
	h.Cleanup(func() { _ = c.Close() }) // nothing is under way
	status, err := c.Status(context.Background(), endpoints[0])
	if err != nil {
		return nil, err
	}
	return &store{kind: kind, version: fmt.Sprintf("%d × etcd %s", members, status.Version), unit: "revisions",
		place: func(name string) (string, error) { return "etcd://" + strings.Join(endpoints, ",") + "/" + name, nil },
		count: func() (int64, error) {
			s, err := c.Status(context.Background(), endpoints[0])
			if err != nil {
				return 0, err
			}
			return s.Header.Revision, nil
		}}, nil
}

func postgres(h *host) (*store, error) {
	set := &databases.Set{Durable: true}
	h.Cleanup(set.Close)
	dsn := set.Postgres(h)
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, err
	}
	h.Cleanup(func() { _ = db.Close() }) // nothing is under way
	s := &store{kind: "postgres", unit: "WAL records"}
	s.place = func(name string) (string, error) {
		_, err := db.ExecContext(context.Background(), "CREATE SCHEMA "+name)
		return dsn + "&search_path=" + name, err
	}
	s.count = func() (n int64, err error) {
		err = db.QueryRowContext(context.Background(), "SELECT wal_records FROM pg_stat_wal").Scan(&n)
		return n, err
	}
	err = db.QueryRowContext(context.Background(), "SHOW server_version").Scan(&s.version)
	s.version = "PostgreSQL " + s.version
	return s, err
}
