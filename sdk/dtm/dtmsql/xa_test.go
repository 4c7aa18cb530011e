package dtmsql

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"txmesh/sdk/dtm"
)

// registrar is the part of a door that a participant meets.
type registrar struct {
	*httptest.Server
	mu     sync.Mutex // guards bodies, status
	bodies []string
	status int
}

func newRegistrar(t *testing.T) *registrar {
	d := &registrar{status: http.StatusOK}
	d.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.bodies = append(d.bodies, r.URL.Path+" "+string(body))
		w.WriteHeader(d.status)
		_, _ = io.WriteString(w, `{"message":"m"}`)
	}))
	t.Cleanup(d.Close)
	return d
}

func (d *registrar) branch(gid, op string) dtm.Branch {
	return dtm.Branch{TransType: "xa", GID: gid, ID: "01", Op: op, Server: d.URL, Phase2URL: "http://bank/xa"}
}

// handle is one call of an XA branch, whose work adds to the account.
func (a account) handle(ctx context.Context, b dtm.Branch, delta int) error {
	return a.d.HandleXA(ctx, b, func(ctx context.Context, conn *sql.Conn) error { return a.add(ctx, conn, delta) })
}

// prepared counts the transactions that the server holds prepared.
func prepared(t *testing.T, d Database) int {
	t.Helper()
	query := "xa recover"
	if d.Dialect == Postgres {
		query = "select gid from pg_prepared_xacts"
	}
	rows, err := d.DB.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		n++
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

func (a account) has(t *testing.T, amount, nPrepared int) {
	t.Helper()
	if got := a.amount(t); got != amount {
		t.Errorf("amount = %d, want %d", got, amount)
	}
	if got := prepared(t, a.d); got != nPrepared {
		t.Errorf("%d transactions are prepared, want %d", got, nPrepared)
	}
}

func TestXACommits(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		door := newRegistrar(t)
		a, gid := newAccount(t, d), newGID()+"'s" // quoting must not matter
		if err := a.handle(t.Context(), door.branch(gid, "action"), -30); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf(`/registerBranch {"branch_id":"01","gid":%q,"trans_type":"xa","url":"http://bank/xa"}`, gid)
		if len(door.bodies) != 1 || door.bodies[0] != want {
			t.Errorf("registered %q, want %s", door.bodies, want)
		}
		a.has(t, 100, 1)
		for range 2 { // the door may repeat it
			if err := a.handle(t.Context(), door.branch(gid, "commit"), -30); err != nil {
				t.Error(err)
			}
			a.has(t, 70, 0)
		}
		if err := a.handle(t.Context(), door.branch(gid, "rollback"), -30); err == nil {
			t.Error("what is committed is rolled back")
		}
		if err := a.handle(t.Context(), door.branch(gid, "action"), -30); !errors.Is(err, dtm.ErrFailure) {
			t.Errorf("action after its commit: %v", err)
		}
		a.has(t, 70, 0)
	})
}

func TestXARollsBack(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		door := newRegistrar(t)
		a, gid := newAccount(t, d), newGID()
		if err := a.handle(t.Context(), door.branch(gid, "action"), -30); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := a.handle(t.Context(), door.branch(gid, "rollback"), -30); err != nil {
				t.Error(err)
			}
			a.has(t, 100, 0)
		}
		if err := a.handle(t.Context(), door.branch(gid, "action"), -30); !errors.Is(err, dtm.ErrFailure) {
			t.Errorf("action after its rollback: %v", err)
		}
		if err := a.handle(t.Context(), door.branch(gid, "commit"), -30); err == nil {
			t.Error("what is rolled back is committed")
		}
		a.has(t, 100, 0)
	})
}

// The commit comes at once after the answer, from another connection: it must find the transaction each time.
func TestXACommitFindsWhatWasAnswered(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		door := newRegistrar(t)
		a := newAccount(t, d)
		const rounds = 100
		for range rounds {
			gid := newGID()
			for _, op := range []string{"action", "commit"} {
				if err := a.handle(t.Context(), door.branch(gid, op), -1); err != nil {
					t.Fatalf("%s: %v", op, err)
				}
			}
		}
		a.has(t, 100-rounds, 0)
	})
}

// The commit comes while the preparing connection still has the transaction: it is not lost.
func TestXACommitIsNeverTakenForDone(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		door := newRegistrar(t)
		a, b := newAccount(t, d), door.branch(newGID(), "commit")
		if err := a.handle(t.Context(), b, 0); err == nil {
			t.Error("commit of a transaction that never was: success")
		}
		if d.Dialect == Postgres {
			return // it has no such state
		}
		x, err := d.xid(b)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := d.DB.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		session, err := x.session(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		err = x.exec(t.Context(), conn, x.begin)
		if err == nil {
			_, err = d.insert(t.Context(), conn, rowOf(b, "action"))
		}
		err = errors.Join(err, a.add(t.Context(), conn, -30))
		for _, text := range x.prepare {
			err = errors.Join(err, x.exec(t.Context(), conn, text))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := a.handle(t.Context(), b, 0); err == nil {
			t.Error("commit of a transaction that its connection still has: success")
		}
		a.has(t, 100, 1)
		discard(conn)
		if err := x.released(t.Context(), d.DB, session); err != nil {
			t.Fatal(err)
		}
		if err := a.handle(t.Context(), b, 0); err != nil {
			t.Error(err)
		}
		a.has(t, 70, 0)
	})
}

func TestXALeavesNothingOfWhatFailed(t *testing.T) {
	boom := errors.New("boom")
	for name, do := range map[string]func() error{
		"after an error": func() error { return boom },
		"after a panic":  func() error { panic(boom) },
		"after an error of the door": func() error {
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			each(t, func(t *testing.T, d Database) {
				door := newRegistrar(t)
				door.status = http.StatusInternalServerError
				a, gid := newAccount(t, d), newGID()
				func() {
					defer func() { _ = recover() }()
					err := d.HandleXA(t.Context(), door.branch(gid, "action"), func(ctx context.Context, conn *sql.Conn) error {
						return errors.Join(a.add(ctx, conn, -30), do())
					})
					if err == nil {
						t.Error("success")
					}
				}()
				a.has(t, 100, 0)
				if got := len(door.bodies); name != "after an error of the door" && got != 0 {
					t.Errorf("%d branches are registered", got)
				}
				if err := a.handle(t.Context(), door.branch(gid, "rollback"), 0); err != nil {
					t.Error(err)
				}
				a.has(t, 100, 0)
			})
		})
	}
}

// PostgreSQL rolls a broken transaction back when it is told to prepare it, and calls that a success.
func TestXANeverPreparesWhatIsBroken(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		if d.Dialect == MySQL {
			t.Skip("a statement that fails does not break a transaction of MySQL")
		}
		door := newRegistrar(t)
		a, gid := newAccount(t, d), newGID()
		err := d.HandleXA(t.Context(), door.branch(gid, "action"), func(ctx context.Context, conn *sql.Conn) error {
			_, err := conn.ExecContext(ctx, "select nothing from nowhere")
			if err == nil {
				t.Error("the statement was to fail")
			}
			return nil // do does not look at it
		})
		if err == nil {
			t.Error("success")
		}
		a.has(t, 100, 0)
	})
}

// A rollback comes while the action works. It waits, gives up when the action has prepared, and ends it when repeated.
func TestXARollbackMeetsAnActionUnderWay(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		door := newRegistrar(t)
		a, gid := newAccount(t, d), newGID()
		rolled := make(chan error, 1)
		rollback, giveUp := context.WithCancel(t.Context())
		defer giveUp()
		err := d.HandleXA(t.Context(), door.branch(gid, "action"), func(ctx context.Context, conn *sql.Conn) error {
			go func() { rolled <- a.handle(rollback, door.branch(gid, "rollback"), 0) }()
			waitForLock(t, d)
			return a.add(ctx, conn, -30)
		})
		if err != nil {
			t.Fatal(err)
		}
		giveUp()
		if err := <-rolled; err == nil {
			t.Error("rolled back while the action was preparing: success")
		}
		a.has(t, 100, 1)
		if err := a.handle(t.Context(), door.branch(gid, "rollback"), 0); err != nil {
			t.Error(err)
		}
		a.has(t, 100, 0)
	})
}

// The connection breaks between the database's prepare and its answer: the branch does not know, the door ends it.
func TestXAPrepareWithoutAnAnswer(t *testing.T) {
	for _, end := range []string{"rollback", "commit"} {
		t.Run(end, func(t *testing.T) {
			each(t, func(t *testing.T, d Database) {
				door := newRegistrar(t)
				a, gid := newAccount(t, d), newGID()
				broken := Database{DB: throughCutter(t, d), Dialect: d.Dialect}
				err := broken.HandleXA(t.Context(), door.branch(gid, "action"), func(ctx context.Context, conn *sql.Conn) error {
					return a.add(ctx, conn, -30)
				})
				if err == nil || errors.Is(err, dtm.ErrFailure) {
					t.Errorf("error = %v, want one of unknown outcome", err)
				}
				for end := time.Now().Add(30 * time.Second); prepared(t, d) == 0 && time.Now().Before(end); {
					time.Sleep(time.Millisecond) // the database prepares, answers nobody and lets go
				}
				a.has(t, 100, 1)
				for try := time.Now().Add(30 * time.Second); ; { // as the door does
					if err = a.handle(t.Context(), door.branch(gid, end), 0); err == nil || time.Now().After(try) {
						break
					}
				}
				if err != nil {
					t.Error(err)
				}
				a.has(t, map[string]int{"rollback": 100, "commit": 70}[end], 0)
			})
		})
	}
}

// throughCutter opens a database behind a wire that breaks once a prepare has gone by.
func throughCutter(t *testing.T, d Database) *sql.DB {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	driver, dsn, word := "mysql", servers.MariaDB(t), "xa prepare"
	address := strings.TrimSuffix(strings.SplitAfter(strings.SplitAfter(dsn, "(")[1], ")")[0], ")")
	if d.Dialect == Postgres {
		driver, dsn, word = "pgx", servers.Postgres(t), "prepare transaction"
		u, err := url.Parse(dsn)
		if err != nil {
			t.Fatal(err)
		}
		address = u.Host
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				return
			}
			go cut(client, server, word)
		}
	}()
	db, err := sql.Open(driver, strings.Replace(dsn, address, l.Addr().String(), 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// cut forwards both ways until the word has gone to the server; then the client hears nothing more.
func cut(client, server net.Conn, word string) {
	go func() {
		_, _ = io.Copy(client, server) // ends with either
		client.Close()
	}()
	defer server.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		if bytes.Contains(buf[:n], []byte(word)) {
			client.Close()
			_, _ = server.Write(buf[:n])
			return
		}
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
	}
}

func TestXABranchesWithoutAName(t *testing.T) {
	each(t, func(t *testing.T, d Database) {
		door := newRegistrar(t)
		a := newAccount(t, d)
		for name, b := range map[string]dtm.Branch{
			"too long":       door.branch(strings.Repeat("g", 200), "action"),
			"without an id":  door.branch("", "action"),
			"of another op":  door.branch(newGID(), "try"),
			"without a door": {TransType: "xa", GID: newGID(), ID: "01", Op: "action"},
		} {
			if err := a.handle(t.Context(), b, -30); err == nil {
				t.Errorf("branch %s: success", name)
			}
		}
		a.has(t, 100, 0)
	})
}
