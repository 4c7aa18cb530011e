package dtmsdk

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/sdk/dtm"
	"txmesh/sdk/dtm/dtmsql"
	"txmesh/tests/databases"
)

var servers databases.Set

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "txmesh-dtmsdk-")
	if err == nil {
		err = os.Setenv(binEnv, dir)
	}
	if err != nil {
		panic(err)
	}
	code := m.Run()
	servers.Close()
	if err := os.RemoveAll(dir); err != nil {
		panic(err)
	}
	os.Exit(code)
}

// binEnv names the directory of what is built.
const binEnv = "DTMSDK_BIN"

// program builds the sidecar once.
var program = sync.OnceValues(func() (string, error) {
	path := os.Getenv(binEnv) + "/txmesh-sidecar"
	out, err := exec.Command("go", "build", "-o", path, "txmesh/cmd/txmesh-sidecar").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

// world is a door, a bank with a database of each kind, and what was called there.
type world struct {
	t    *testing.T
	dir  string
	door string // host:port, kept over restarts
	cmd  *exec.Cmd

	app *httptest.Server
	mux *http.ServeMux

	maria, postgres dtmsql.Database

	mu    sync.Mutex // guards calls
	calls []string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), door: "127.0.0.1:0", mux: http.NewServeMux()}
	w.start()
	t.Cleanup(w.kill)
	w.app = httptest.NewServer(w.mux)
	t.Cleanup(w.app.Close)
	w.maria = w.database("mysql", servers.MariaDB(t), dtmsql.MySQL)
	w.postgres = w.database("pgx", servers.Postgres(t), dtmsql.Postgres)
	return w
}

func (w *world) start() {
	w.t.Helper()
	path, err := program()
	if err != nil {
		w.t.Fatal(err)
	}
	w.cmd = exec.Command(path, "--dtm", w.door, "--api", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--data-dir", w.dir+"/data",
		"--dtm-retry-interval", "100ms", "--dtm-resume-after", "1s", "--log-level", "error")
	w.cmd.Stderr = w.t.Output()
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := w.cmd.StdoutPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	var ready struct {
		DTM string `json:"dtm"`
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &ready)
	}
	if err != nil {
		w.t.Fatalf("start the sidecar: %v, it says %q", err, line)
	}
	w.door = ready.DTM
}

func (w *world) kill() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait() // it was killed
}

func (w *world) server() string { return "http://" + w.door + "/api/dtmsvr" }

func (w *world) gid() string {
	w.t.Helper()
	gid, err := dtm.Client{Server: w.server()}.NewGID(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return gid
}

// database is a fresh account of 100 in an own table name, and the barrier.
func (w *world) database(driver, dsn string, dialect dtmsql.Dialect) dtmsql.Database {
	w.t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { db.Close() })
	d := dtmsql.Database{DB: db, Dialect: dialect}
	err = d.CreateTable(w.t.Context())
	for _, text := range []string{"drop table if exists account", "create table account (amount bigint not null)", "insert into account values (100)"} {
		if err == nil {
			_, err = db.ExecContext(w.t.Context(), text)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// execer is a transaction or a connection.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// add is the work of a branch; an account does not go below zero.
func add(ctx context.Context, tx execer, delta int) error {
	res, err := tx.ExecContext(ctx, fmt.Sprintf("update account set amount = amount + (%d) where amount + (%d) >= 0", delta, delta))
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, errors.New("there is not enough"), dtm.ErrFailure)
	}
	return nil
}

func (w *world) has(maria, postgres int) {
	w.t.Helper()
	for _, d := range []struct {
		name string
		db   *sql.DB
		want int
	}{{"MariaDB", w.maria.DB, maria}, {"PostgreSQL", w.postgres.DB, postgres}} {
		var got int
		if err := d.db.QueryRowContext(w.t.Context(), "select amount from account").Scan(&got); err != nil || got != d.want {
			w.t.Errorf("%s has %d, %v; want %d", d.name, got, err, d.want)
		}
	}
}

// serve answers a path of the application, and notes what was called.
func (w *world) serve(name string, do func(ctx context.Context, b dtm.Branch) error) string {
	h := dtm.Handle(func(ctx context.Context, b dtm.Branch, _ []byte) ([]byte, error) {
		w.note(name + " " + b.Op)
		return nil, do(ctx, b)
	})
	w.mux.Handle("/"+name, h)
	return w.app.URL + "/" + name
}

func (w *world) note(call string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, call)
}

func (w *world) called(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if diff := cmp.Diff(want, w.calls); diff != "" {
		w.t.Errorf("calls (-want +got):\n%s", diff)
	}
}

// mover serves a path that adds to a database behind the barrier: delta if forward, and back.
func (w *world) mover(name string, d dtmsql.Database, delta int) string {
	return w.serve(name, func(ctx context.Context, b dtm.Branch) error {
		return dtmsql.NewBarrier(b).Call(ctx, d, func(tx *sql.Tx) error {
			switch b.Op {
			case dtm.OpCancel, dtm.OpCompensate, dtm.OpRollback:
				return add(ctx, tx, -delta)
			case dtm.OpConfirm:
				return nil
			}
			return add(ctx, tx, delta)
		})
	})
}

// ends waits for the end of a transaction.
func (w *world) ends(gid, want string) {
	w.t.Helper()
	const endMax, pause = 30 * time.Second, 10 * time.Millisecond
	var got dtm.Transaction
	for end := time.Now().Add(endMax); !got.Final() && time.Now().Before(end); time.Sleep(pause) {
		var err error
		if got, err = (dtm.Client{Server: w.server()}).Query(w.t.Context(), gid); err != nil {
			w.t.Fatal(err)
		}
	}
	if got.Status != want {
		w.t.Errorf("%s is %s, %q; want %s", gid, got.Status, got.RollbackReason, want)
	}
}
