package databases

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"os"
	"testing"

	"github.com/redis/go-redis/v9"
)

func TestEachDatabaseAnswersAndEnds(t *testing.T) {
	for name, use := range map[string]func(*testing.T, *Set) string{
		"MariaDB": func(t *testing.T, s *Set) string {
			version(t, "mysql", s.MariaDB(t))
			return s.running["MariaDB"].address
		},
		"PostgreSQL": func(t *testing.T, s *Set) string {
			version(t, "pgx", s.Postgres(t))
			return s.running["PostgreSQL"].address
		},
		"Redis": func(t *testing.T, s *Set) string {
			c := redis.NewClient(&redis.Options{Addr: s.Redis(t)})
			defer c.Close()
			if n, err := c.DBSize(t.Context()).Result(); err != nil || n != 0 {
				t.Errorf("%d keys, %v", n, err)
			}
			return s.Redis(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var s Set
			defer s.Close()
			address := use(t, &s)
			dir := s.running[name].dir
			s.Close()
			if c, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", address); err == nil {
				c.Close()
				t.Errorf("%s still listens after Close", address)
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("its folder is still there: %v", err)
			}
		})
	}
}

func version(t *testing.T, driver, dsn string) {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var v string
	if err := db.QueryRowContext(t.Context(), "select version()").Scan(&v); err != nil {
		t.Fatal(err)
	}
	t.Log(v)
}

func TestEtcdLosesAndRegainsAMember(t *testing.T) {
	var c *Etcd
	t.Run("use", func(t *testing.T) {
		c = StartEtcd(t, 3)
		if n := len(c.Endpoints()); n != 3 {
			t.Fatalf("%d endpoints, want 3", n)
		}
		for _, end := range []func(int) error{c.Kill, c.Stop} {
			if err := end(1); err != nil {
				t.Fatal(err)
			}
			if err := healthy(t.Context(), c.members[1].client); err == nil {
				t.Error("a member that was ended answers")
			}
			if err := errors.Join(c.Restart(1), c.Await(1)); err != nil {
				t.Fatal(err)
			}
		}
	})
	for i, m := range c.members {
		if _, err := os.Stat(m.dir); !os.IsNotExist(err) || healthy(context.Background(), m.client) == nil {
			t.Errorf("member %d is still there after its test: %v", i, err)
		}
	}
}

// TestEtcdIsBuilt is how make etcd builds the server.
func TestEtcdIsBuilt(t *testing.T) {
	if os.Getenv("TXMESH_BUILD") == "" {
		t.Skip("make etcd asks for it")
	}
	bin, err := EtcdBinary()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(bin)
}
