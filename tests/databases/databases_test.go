package databases

import (
	"context"
	"database/sql"
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
