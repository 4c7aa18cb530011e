// Package databases starts real databases for tests: MariaDB, PostgreSQL, Redis and etcd, each a process of this test run, in
// a folder of its own and on a free port of the loopback. It installs nothing: a test whose database is not on this
// machine is skipped and says which package has it. Start at Set.
package databases

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // the driver mysql
	_ "github.com/jackc/pgx/v5/stdlib" // the driver pgx
	"github.com/redis/go-redis/v9"
)

// readyMax is how long a database may take to come up. This machine may be busy with other things.
const readyMax = 60 * time.Second

// Set starts each database when it is first asked for. TestMain closes it after the tests. The zero value is ready.
type Set struct {
	Durable bool       // commits reach the disk, as is the databases' default; else they are quick
	mu      sync.Mutex // guards running
	running map[string]*server
}

// server is a running database, or why there is none.
type server struct {
	address string // host:port
	dir     string
	args    []string
	cmd     *exec.Cmd
	exited  chan struct{} // closed when the process is gone
	err     error
}

// MariaDB returns the data source name, for the driver mysql, of the empty database test. The user is root.
func (s *Set) MariaDB(tb testing.TB) string {
	tb.Helper()
	return "root@tcp(" + s.address(tb, mariaDB(s.Durable)) + ")/test?parseTime=true"
}

// Postgres returns the data source name, for the driver pgx, of the empty database postgres. The user is postgres.
func (s *Set) Postgres(tb testing.TB) string {
	tb.Helper()
	return "postgres://postgres@" + s.address(tb, postgres(s.Durable)) + "/postgres?sslmode=disable"
}

// PostgresSocket is Postgres over a socket of the file system, which is reached from every network namespace.
func (s *Set) PostgresSocket(tb testing.TB) string {
	tb.Helper()
	k := postgres(s.Durable)
	_, port, err := net.SplitHostPort(s.address(tb, k))
	if err != nil {
		tb.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return "host=" + s.running[k.name].dir + " port=" + port + " user=postgres dbname=postgres"
}

// Redis returns the host:port of an empty Redis.
func (s *Set) Redis(tb testing.TB) string {
	tb.Helper()
	return s.address(tb, redisServer())
}

// Close ends all databases and removes what they have written.
func (s *Set) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, db := range s.running {
		db.stop()
	}
}

// kind is how one database is made and started.
type kind struct {
	name, pkg string
	binaries  []string // the first is the server
	prepare   func(bin []string, dir string) []string
	serve     func(bin []string, dir, port string) []string
	ping      func(ctx context.Context, address string) error
}

// address returns where a database is, and starts it if need be.
func (s *Set) address(tb testing.TB, k kind) string {
	tb.Helper()
	bin, missing := find(k.binaries)
	if missing != "" {
		tb.Skipf("%s is missing on this machine: apt-get install %s", missing, k.pkg)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		s.running = map[string]*server{}
	}
	if s.running[k.name] == nil {
		s.running[k.name] = start(k, bin)
	}
	if err := s.running[k.name].err; err != nil {
		tb.Fatal(err)
	}
	return s.running[k.name].address
}

// find returns the paths of programs, or the name of one that is not there. Debian keeps some out of the PATH.
func find(names []string) (paths []string, missing string) {
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // the pattern is well formed
			found = append(found, existing("/usr/sbin/"+name)...)
			if len(found) == 0 {
				return nil, name
			}
			path = slices.Max(found)
		}
		paths = append(paths, path)
	}
	return paths, ""
}

func existing(path string) []string {
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	return []string{path}
}

// start makes a database and waits until it answers. Another process may take the free port first, so it tries again.
func start(k kind, bin []string) *server {
	const tries = 3
	var db *server
	for range tries {
		if db = startOnce(k, bin); db.err == nil {
			return db
		}
		db.stop()
	}
	return db
}

func startOnce(k kind, bin []string) *server {
	db := &server{}
	if db.err = db.folder(); db.err != nil {
		return db
	}
	if k.prepare != nil {
		c := command(k.prepare(bin, db.dir), db.dir)
		if out, err := c.CombinedOutput(); err != nil {
			db.err = fmt.Errorf("make a database with %v: %w\n%s", c.Args, err, out)
			return db
		}
	}
	port, err := freePort()
	if err != nil {
		db.err = err
		return db
	}
	db.address = "127.0.0.1:" + port
	db.args = k.serve(bin, db.dir, port)
	db.err = db.run(k)
	return db
}

// run starts the process, for the first time or again, and waits until it answers.
func (db *server) run(k kind) error {
	log, err := os.OpenFile(db.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := command(db.args, db.dir)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	db.cmd, db.exited = cmd, exited
	go func() {
		defer close(exited)
		_ = cmd.Wait() // it is killed in the end, which is an error here
	}()
	if err := db.await(k); err != nil {
		text, _ := os.ReadFile(db.dir + "/log") // without it, the error alone must do
		return fmt.Errorf("start %s: %w\n%s", k.name, err, text)
	}
	return nil
}

// await returns when the database answers.
func (db *server) await(k kind) error {
	ctx, stop := context.WithTimeout(context.Background(), readyMax)
	defer stop()
	const pause = 20 * time.Millisecond
	for {
		err := k.ping(ctx, db.address)
		if err == nil {
			return nil
		}
		select {
		case <-db.exited:
			return fmt.Errorf("it has ended before it was ready: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("it was not ready within %v: %w", readyMax, err)
		case <-time.After(pause):
		}
	}
}

func (db *server) stop() {
	if db.cmd != nil {
		_ = syscall.Kill(-db.cmd.Process.Pid, syscall.SIGKILL) // it may have ended already
		<-db.exited
	}
	// The children of PostgreSQL have groups of their own. They end when they miss their parent, and may write until then.
	const tries, pause = 100, 20 * time.Millisecond
	for range tries {
		if db.dir == "" || os.RemoveAll(db.dir) == nil {
			return
		}
		time.Sleep(pause)
	}
}

// folder makes the database's own folder. Databases refuse to be run by root, so it belongs to whom they run as then.
func (db *server) folder() error {
	dir, err := os.MkdirTemp("", "txmesh-db-")
	if err != nil {
		return err
	}
	db.dir = dir
	id, err := credential()
	if err != nil || id == nil {
		return err
	}
	return os.Chown(dir, int(id.Uid), int(id.Gid))
}

// credential is nobody's if we are root, else nil, which means our own.
func credential() (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err, gidErr)
}

func command(args []string, dir string) *exec.Cmd {
	c := exec.CommandContext(context.Background(), args[0], args[1:]...) // it lives until stop
	c.Dir = dir
	c.Env = append(os.Environ(), "HOME="+dir, "TMPDIR="+dir, "LC_ALL=C")
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.SysProcAttr.Credential, _ = credential() // folder has seen its error
	return c
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, errors.Join(err, l.Close())
}

func mariaDB(durable bool) kind {
	quick := []string{"--skip-log-bin", "--innodb-flush-log-at-trx-commit=0"}
	if durable {
		quick = nil
	}
	return kind{
		name: "MariaDB", pkg: "mariadb-server-core mariadb-client-core", binaries: []string{"mariadbd", "mariadb-install-db", "my_print_defaults"},
		prepare: func(bin []string, dir string) []string {
			return []string{bin[1], "--no-defaults", "--datadir=" + dir + "/data", "--auth-root-authentication-method=normal"}
		},
		serve: func(bin []string, dir, port string) []string {
			return append([]string{bin[0], "--no-defaults", "--datadir=" + dir + "/data", "--bind-address=127.0.0.1", "--port=" + port, "--socket=" + dir + "/socket",
				"--pid-file=" + dir + "/pid", "--innodb-buffer-pool-size=32M"}, quick...)
		},
		ping: func(ctx context.Context, address string) error {
			return ping(ctx, "mysql", "root@tcp("+address+")/test")
		},
	}
}

func postgres(durable bool) kind {
	quick := []string{"-c", "fsync=off"}
	if durable {
		quick = nil
	}
	return kind{
		name: "PostgreSQL", pkg: "postgresql", binaries: []string{"postgres", "initdb"},
		prepare: func(bin []string, dir string) []string {
			return []string{bin[1], "--pgdata=" + dir + "/data", "--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"}
		},
		serve: func(bin []string, dir, port string) []string {
			return append([]string{bin[0], "-D", dir + "/data", "-h", "127.0.0.1", "-p", port, "-k", dir, "-c", "max_prepared_transactions=64"}, quick...)
		},
		ping: func(ctx context.Context, address string) error {
			return ping(ctx, "pgx", "postgres://postgres@"+address+"/postgres?sslmode=disable")
		},
	}
}

func redisServer() kind {
	return kind{
		name: "Redis", pkg: "redis-server", binaries: []string{"redis-server"},
		serve: func(bin []string, dir, port string) []string {
			return []string{bin[0], "--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", ""}
		},
		ping: func(ctx context.Context, address string) error {
			c := redis.NewClient(&redis.Options{Addr: address})
			defer c.Close()
			return c.Ping(ctx).Err()
		},
	}
}

func ping(ctx context.Context, driver, dsn string) error {
	db, err := sql.Open(driver, dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	return db.PingContext(ctx)
}
