package dtmsql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/sdk/dtm"
	"txmesh/tests/databases"
)

var (
	servers databases.Set
	numbers atomic.Int64 // so that tests do not meet each other's rows
)

func TestMain(m *testing.M) {
	code := m.Run()
	servers.Close()
	os.Exit(code)
}

// each runs a test at both databases.
func each(t *testing.T, test func(t *testing.T, d Database)) {
	for _, k := range []struct {
		name, driver string
		dialect      Dialect
		dsn          func(testing.TB) string
	}{{"MariaDB", "mysql", MySQL, servers.MariaDB}, {"PostgreSQL", "pgx", Postgres, servers.Postgres}} {
		t.Run(k.name, func(t *testing.T) {
			db, err := sql.Open(k.driver, k.dsn(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			d := Database{DB: db, Dialect: k.dialect}
			if err := d.CreateTable(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := db.ExecContext(t.Context(), "create table if not exists account (name varchar(64) primary key, amount bigint not null)"); err != nil {
				t.Fatal(err)
			}
			test(t, d)
		})
	}
}

// account is one of its own for each test.
type account struct {
	d    Database
	name string
}

func newAccount(t *testing.T, d Database) account {
	a := account{d, fmt.Sprintf("a%d", numbers.Add(1))}
	if _, err := d.DB.ExecContext(t.Context(), "insert into account values ('"+a.name+"', 100)"); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a account) add(ctx context.Context, tx execer, delta int) error {
	_, err := tx.ExecContext(ctx, fmt.Sprintf("update account set amount = amount + (%d) where name = '%s'", delta, a.name))
	return err
}

func (a account) amount(t *testing.T) int {
	t.Helper()
	var n int
	if err := a.d.DB.QueryRowContext(t.Context(), "select amount from account where name = '"+a.name+"'").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func newGID() string { return fmt.Sprintf("gid-%d", numbers.Add(1)) }

// call is one call of a branch, whose work adds to the account.
func (a account) call(ctx context.Context, transType, gid, op string, delta int) error {
	b := dtm.Branch{TransType: transType, GID: gid, ID: "01", Op: op}
	return NewBarrier(b).Call(ctx, a.d, func(tx *sql.Tx) error { return a.add(ctx, tx, delta) })
}

// rows returns what the table has of a transaction, as op:reason.
func (a account) rows(t *testing.T, gid string) string {
	t.Helper()
	rows, err := a.d.DB.QueryContext(t.Context(), "select op, reason from dtm_barrier.barrier where gid = '"+gid+"' order by id")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var op, reason string
		if err := rows.Scan(&op, &reason); err != nil {
			t.Fatal(err)
		}
		all = append(all, op+":"+reason)
	}
	return strings.Join(all, " ")
}

func TestBarrierVerdicts(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		for _, tt := range []struct {
			name, transType, ops string // in the order of their coming
			want                 int    // each forward adds 1, each confirm 10, each backward takes 1
			rows                 string
		}{
			{"try and confirm", "tcc", "try confirm", 111, "try:try confirm:confirm"},
			{"try and cancel", "tcc", "try cancel", 100, "try:try cancel:cancel"},
			{"repeated try", "tcc", "try try", 101, "try:try"},
			{"repeated confirm", "tcc", "try confirm confirm", 111, "try:try confirm:confirm"},
			{"repeated cancel", "tcc", "try cancel cancel", 100, "try:try cancel:cancel"},
			{"cancel of nothing", "tcc", "cancel", 100, "try:cancel cancel:cancel"},
			{"repeated cancel of nothing", "tcc", "cancel cancel", 100, "try:cancel cancel:cancel"},
			{"try after its cancel", "tcc", "cancel try", 100, "try:cancel cancel:cancel"},
			{"cancel, late try, cancel", "tcc", "cancel try cancel", 100, "try:cancel cancel:cancel"},
			{"action and compensation", "saga", "action compensate", 100, "action:action compensate:compensate"},
			{"compensation of nothing", "saga", "compensate", 100, "action:compensate compensate:compensate"},
			{"action after its compensation", "saga", "compensate action", 100, "action:compensate compensate:compensate"},
			{"action and rollback", "workflow", "action rollback", 100, "action:action rollback:rollback"},
			{"rollback of nothing", "workflow", "rollback action", 100, "action:rollback rollback:rollback"},
		} {
			t.Run(tt.name, func(t *testing.T) {
				a, gid := newAccount(t, d), newGID()
				delta := map[string]int{"try": 1, "action": 1, "confirm": 10, "cancel": -1, "compensate": -1, "rollback": -1}
				for _, op := range strings.Fields(tt.ops) {
					if err := a.call(t.Context(), tt.transType, gid, op, delta[op]); err != nil {
						t.Fatalf("%s: %v", op, err)
					}
				}
				if got := a.amount(t); got != tt.want {
					t.Errorf("amount = %d, want %d", got, tt.want)
				}
				if diff := cmp.Diff(tt.rows, a.rows(t, gid)); diff != "" {
					t.Errorf("rows (-want +got):\n%s", diff)
				}
			})
		}
	})
}

func TestBarrierForgetsWhatFailed(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		a, gid := newAccount(t, d), newGID()
		b := dtm.Branch{TransType: "saga", GID: gid, ID: "01", Op: "action"}
		boom := errors.New("boom")
		err := NewBarrier(b).Call(t.Context(), d, func(tx *sql.Tx) error { return errors.Join(a.add(t.Context(), tx, 1), boom) })
		if !errors.Is(err, boom) || a.rows(t, gid) != "" {
			t.Errorf("error = %v, rows %q", err, a.rows(t, gid))
		}
		func() {
			defer func() { _ = recover() }()
			_ = NewBarrier(b).Call(t.Context(), d, func(tx *sql.Tx) error { _ = a.add(t.Context(), tx, 1); panic("boom") })
		}()
		if err := a.call(t.Context(), "saga", gid, "action", 1); err != nil || a.amount(t) != 101 {
			t.Errorf("repeated after an error and a panic: %v, amount %d", err, a.amount(t))
		}
	})
}

// The work does not look at the error of a statement, which breaks a transaction of PostgreSQL: that is no success.
func TestBarrierNeverCommitsWhatIsBroken(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		if d.Dialect == MySQL {
			t.Skip("a statement that fails does not break a transaction of MySQL")
		}
		a, gid := newAccount(t, d), newGID()
		b := NewBarrier(dtm.Branch{TransType: "saga", GID: gid, ID: "01", Op: "action"})
		err := b.Call(t.Context(), d, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(t.Context(), "select nothing from nowhere")
			if err == nil {
				t.Error("the statement was to fail")
			}
			return nil
		})
		if err == nil || a.rows(t, gid) != "" {
			t.Errorf("error = %v, rows %q", err, a.rows(t, gid))
		}
	})
}

func TestBarrierTellsCallsOfOneRequestApart(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		a, gid := newAccount(t, d), newGID()
		for range 2 { // the request is repeated
			b := NewBarrier(dtm.Branch{TransType: "saga", GID: gid, ID: "01", Op: "action"})
			for range 3 {
				if err := b.Call(t.Context(), d, func(tx *sql.Tx) error { return a.add(t.Context(), tx, 1) }); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := a.amount(t); got != 103 {
			t.Errorf("amount = %d, want 103", got)
		}
	})
}

// A cancel that comes while its try works waits for it, and takes it back if it commits.
func TestCancelWaitsForItsTry(t *testing.T) {
	for _, commits := range []bool{true, false} {
		t.Run(fmt.Sprint("which commits: ", commits), func(t *testing.T) {
			each(t, func(t *testing.T, d Database) {
				a, gid := newAccount(t, d), newGID()
				inside, goOn, tried := make(chan struct{}), make(chan struct{}), make(chan error, 1)
				go func() {
					b := NewBarrier(dtm.Branch{TransType: "tcc", GID: gid, ID: "01", Op: "try"})
					tried <- b.Call(t.Context(), d, func(tx *sql.Tx) error {
						close(inside)
						<-goOn
						if err := a.add(t.Context(), tx, 1); err != nil || commits {
							return err
						}
						return errors.New("no")
					})
				}()
				<-inside
				cancelled := make(chan error, 1)
				go func() { cancelled <- a.call(t.Context(), "tcc", gid, "cancel", -1) }()
				waitForLock(t, d)
				select {
				case err := <-cancelled:
					t.Fatalf("the cancel did not wait: %v", err)
				default:
				}
				close(goOn)
				if err := <-tried; (err == nil) != commits {
					t.Errorf("try: %v", err)
				}
				if err := <-cancelled; err != nil {
					t.Errorf("cancel: %v", err)
				}
				// A repeat of the try comes late, and must not work any more.
				if err := a.call(t.Context(), "tcc", gid, "try", 1); err != nil {
					t.Error(err)
				}
				if got := a.amount(t); got != 100 {
					t.Errorf("amount = %d, want 100; rows %s", got, a.rows(t, gid))
				}
			})
		})
	}
}

// waitForLock returns when a statement of the server waits for another transaction. Tests of one database run one
// after another, so it is one of the test's own.
func waitForLock(t *testing.T, d Database) {
	t.Helper()
	query := "select variable_value from information_schema.global_status where variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'"
	if d.Dialect == Postgres {
		query = "select count(*) from pg_locks where not granted"
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var n int
		if err := d.DB.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
			t.Error(err)
			return
		}
		if n > 0 {
			return
		}
	}
	t.Error("nothing waits for a lock")
}

// Many calls of one branch at once come to one try and one cancel at most.
func TestBarrierUnderConcurrency(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		const rounds, repeats = 20, 4
		for range rounds {
			a, gid := newAccount(t, d), newGID()
			errs := make(chan error)
			for i := range 2 * repeats {
				op, delta := "try", 1
				if i%2 == 1 {
					op, delta = "cancel", -1
				}
				go func() {
					for { // a deadlock of the database is repeated, as the door would
						err := a.call(t.Context(), "tcc", gid, op, delta)
						if err == nil || !strings.Contains(strings.ToLower(err.Error()), "deadlock") {
							errs <- err
							return
						}
					}
				}()
			}
			for range 2 * repeats {
				if err := <-errs; err != nil {
					t.Error(err)
				}
			}
			if got := a.amount(t); got != 100 {
				t.Fatalf("amount = %d, want 100; rows %s", got, a.rows(t, gid))
			}
		}
	})
}

func TestMessageIsAskedFor(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		ask := func(gid string) error {
			return d.QueryPrepared(t.Context(), dtm.Branch{TransType: "msg", GID: gid, ID: "00", Op: "msg"})
		}
		send := func(a account, gid string) error {
			b := dtm.Branch{TransType: "msg", GID: gid, ID: "00", Op: "msg"}
			return NewBarrier(b).Call(t.Context(), d, func(tx *sql.Tx) error { return a.add(t.Context(), tx, -30) })
		}
		t.Run("after its sender", func(t *testing.T) {
			a, gid := newAccount(t, d), newGID()
			if err := send(a, gid); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := ask(gid); err != nil {
					t.Error(err)
				}
			}
			if err := send(a, gid); !errors.Is(err, dtm.ErrDuplicated) || a.amount(t) != 70 {
				t.Errorf("sent twice: %v, amount %d", err, a.amount(t))
			}
		})
		t.Run("before its sender", func(t *testing.T) {
			a, gid := newAccount(t, d), newGID()
			for range 2 {
				if err := ask(gid); !errors.Is(err, dtm.ErrFailure) {
					t.Errorf("error = %v", err)
				}
			}
			if err := send(a, gid); !errors.Is(err, dtm.ErrDuplicated) || a.amount(t) != 100 {
				t.Errorf("sent after the question: %v, amount %d", err, a.amount(t))
			}
		})
		t.Run("while its sender works", func(t *testing.T) {
			a, gid := newAccount(t, d), newGID()
			asked := make(chan error, 1)
			b := dtm.Branch{TransType: "msg", GID: gid, ID: "00", Op: "msg"}
			err := NewBarrier(b).Call(t.Context(), d, func(tx *sql.Tx) error {
				go func() { asked <- ask(gid) }()
				waitForLock(t, d)
				return a.add(t.Context(), tx, -30)
			})
			if asked := <-asked; err != nil || asked != nil {
				t.Errorf("sent: %v, asked: %v", err, asked)
			}
		})
	})
}

func TestBarrierRefusesWhatItCannotKeep(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		a := newAccount(t, d)
		long := strings.Repeat("g", 129)
		if err := a.call(t.Context(), "saga", long, "action", 1); err == nil || !strings.Contains(err.Error(), "longer than 128") {
			t.Errorf("error = %v", err)
		}
		if err := a.call(t.Context(), "saga", "", "action", 1); err == nil || !strings.Contains(err.Error(), "gid is missing") {
			t.Errorf("error = %v", err)
		}
		gid := newGID()
		for _, gid := range []string{strings.ToUpper(gid), strings.ToLower(gid)} {
			if err := a.call(t.Context(), "saga", gid, "action", 1); err != nil {
				t.Fatal(err)
			}
		}
		if got := a.amount(t); got != 102 {
			t.Errorf("amount = %d, want 102: two gids were one", got)
		}
	})
}
