package dtmsdk

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"txmesh/sdk/dtm"
	"txmesh/sdk/dtm/dtmredis"
	"txmesh/sdk/dtm/dtmsql"
)

func TestSaga(t *testing.T) {
	for _, tt := range []struct {
		amount          int
		end             string
		maria, postgres int
		calls           []string
	}{
		{30, dtm.StatusSucceed, 130, 70, []string{"in action", "out action"}},
		{101, dtm.StatusFailed, 100, 100, []string{"in action", "out action", "out compensate", "in compensate"}},
	} {
		t.Run(tt.end, func(t *testing.T) {
			w := newWorld(t)
			in, out := w.mover("in", w.maria, tt.amount), w.mover("out", w.postgres, -tt.amount)
			saga := dtm.NewSaga(w.server(), w.gid()).Add(in, in, nil).Add(out, out, map[string]int{"amount": tt.amount})
			saga.WaitResult = true
			if err := saga.Submit(t.Context()); errors.Is(err, dtm.ErrFailure) != (tt.end == dtm.StatusFailed) {
				t.Errorf("error = %v", err)
			}
			w.ends(saga.GID, tt.end)
			w.has(tt.maria, tt.postgres)
			w.called(tt.calls...)
		})
	}
}

// The sidecar is killed while an action is not answered: it goes on from there, and the barrier bears the repeat.
func TestSagaOutlivesItsSidecar(t *testing.T) {
	w := newWorld(t)
	in := w.mover("in", w.maria, 30)
	out := w.serve("out", func(ctx context.Context, b dtm.Branch) error {
		err := dtmsql.NewBarrier(b).Call(ctx, w.postgres, func(tx *sql.Tx) error { return add(ctx, tx, -30) })
		w.mu.Lock()
		first := len(w.calls) == 2
		w.mu.Unlock()
		if first {
			w.kill() // after the work, before the answer
		}
		return err
	})
	saga := dtm.NewSaga(w.server(), w.gid()).Add(in, in, nil).Add(out, out, nil)
	saga.WaitResult = true
	if err := saga.Submit(t.Context()); err == nil {
		t.Error("submit is answered by a sidecar that was killed")
	}
	w.start()
	w.ends(saga.GID, dtm.StatusSucceed)
	w.has(130, 70)
	w.called("in action", "out action", "out action")
}

func TestTCC(t *testing.T) {
	for _, tt := range []struct {
		amount          int
		end             string
		maria, postgres int
	}{{30, dtm.StatusSucceed, 130, 40}, {51, dtm.StatusFailed, 100, 100}} {
		t.Run(tt.end, func(t *testing.T) {
			w := newWorld(t)
			in, out := w.mover("in", w.maria, tt.amount), w.mover("out", w.postgres, -tt.amount)
			nest := w.serve("nest", func(ctx context.Context, b dtm.Branch) error {
				if b.Op != dtm.OpTry {
					return nil
				}
				below, err := dtm.TCCOf(b)
				if err == nil {
					_, err = below.CallBranch(ctx, nil, out, out, out)
				}
				return err
			})
			tcc := dtm.NewTCC(w.server(), w.gid())
			tcc.WaitResult = true
			err := tcc.GlobalTransaction(t.Context(), func(ctx context.Context, tcc *dtm.TCC) error {
				for _, url := range []string{in, nest, out} {
					if _, err := tcc.CallBranch(ctx, nil, url, url, url); err != nil {
						return err
					}
				}
				return nil
			})
			if errors.Is(err, dtm.ErrFailure) != (tt.end == dtm.StatusFailed) {
				t.Errorf("error = %v", err)
			}
			w.ends(tcc.GID, tt.end)
			w.has(tt.maria, tt.postgres)
		})
	}
}

func TestMsg(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		name            string
		amount          int
		after           error // of the sender, after its own transaction
		err             error
		end             string
		maria, postgres int
	}{
		{"sent", 30, nil, nil, dtm.StatusSucceed, 130, 70},
		{"refused", 101, nil, dtm.ErrFailure, dtm.StatusFailed, 100, 100},
		{"sent, with an error after it", 30, boom, boom, dtm.StatusSucceed, 130, 70},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			in := w.mover("in", w.maria, tt.amount)
			asked := w.serve("asked", w.postgres.QueryPrepared)
			m := dtm.NewMsg(w.server(), w.gid()).Add(in, nil)
			err := m.DoAndSubmit(t.Context(), asked, func(ctx context.Context, b dtm.Branch) error {
				return errors.Join(tt.after, dtmsql.NewBarrier(b).Call(ctx, w.postgres, func(tx *sql.Tx) error { return add(ctx, tx, -tt.amount) }))
			})
			if tt.err == nil && err != nil || !errors.Is(err, tt.err) {
				t.Errorf("error = %v, want %v", err, tt.err)
			}
			w.ends(m.GID, tt.end)
			w.has(tt.maria, tt.postgres)
		})
	}
}

// The sender is gone after its own transaction, or before it: the door asks.
func TestMsgOfASenderThatIsGone(t *testing.T) {
	for _, tt := range []struct {
		name  string
		works bool
		end   string
		stock string
	}{{"after its work", true, dtm.StatusSucceed, "10"}, {"before its work", false, dtm.StatusFailed, "40"}} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			rdb := redis.NewClient(&redis.Options{Addr: servers.Redis(t)})
			t.Cleanup(func() { rdb.Close() })
			if err := rdb.Set(t.Context(), "stock", 40, 0).Err(); err != nil {
				t.Fatal(err)
			}
			in := w.mover("in", w.maria, 30)
			asked := w.serve("asked", func(ctx context.Context, b dtm.Branch) error { return dtmredis.NewBarrier(b).QueryPrepared(ctx, rdb) })
			m := dtm.NewMsg(w.server(), w.gid()).Add(in, nil)
			m.TimeoutToFail = time.Second
			if err := m.Prepare(t.Context(), asked); err != nil {
				t.Fatal(err)
			}
			work := func() error {
				b := dtm.Branch{TransType: dtm.TypeMsg, GID: m.GID, ID: "00", Op: dtm.OpMsg}
				return dtmredis.NewBarrier(b).AdjustAmount(t.Context(), rdb, "stock", -30)
			}
			if tt.works {
				if err := work(); err != nil {
					t.Fatal(err)
				}
			}
			w.ends(m.GID, tt.end)
			if err := work(); !errors.Is(err, dtm.ErrDuplicated) {
				t.Errorf("the sender comes back: %v", err)
			}
			if got := rdb.Get(t.Context(), "stock").Val(); got != tt.stock {
				t.Errorf("stock = %s, want %s", got, tt.stock)
			}
			w.has(map[string]int{dtm.StatusSucceed: 130, dtm.StatusFailed: 100}[tt.end], 100)
		})
	}
}

func TestXA(t *testing.T) {
	for _, tt := range []struct {
		amount          int
		end             string
		maria, postgres int
	}{{30, dtm.StatusSucceed, 130, 70}, {101, dtm.StatusFailed, 100, 100}} {
		t.Run(tt.end, func(t *testing.T) {
			w := newWorld(t)
			serve := func(name string, d dtmsql.Database, delta int) string {
				return w.serve(name, func(ctx context.Context, b dtm.Branch) error {
					return d.HandleXA(ctx, b, func(ctx context.Context, conn *sql.Conn) error { return add(ctx, conn, delta) })
				})
			}
			in, out := serve("in", w.maria, tt.amount), serve("out", w.postgres, -tt.amount)
			xa := dtm.NewXA(w.server(), w.gid())
			xa.WaitResult = true
			err := xa.GlobalTransaction(t.Context(), func(ctx context.Context, x *dtm.XA) error {
				_, err := x.CallBranch(ctx, nil, in)
				if err == nil {
					w.has(100, 100)
					_, err = x.CallBranch(ctx, nil, out)
				}
				return err
			})
			if errors.Is(err, dtm.ErrFailure) != (tt.end == dtm.StatusFailed) {
				t.Errorf("error = %v", err)
			}
			w.ends(xa.GID, tt.end)
			w.has(tt.maria, tt.postgres)
			w.nothingIsPrepared()
		})
	}
}

// The client is gone between the prepare of its branch and its own decision: the door rolls back.
func TestXAOfAClientThatIsGone(t *testing.T) {
	w := newWorld(t)
	in := w.serve("in", func(ctx context.Context, b dtm.Branch) error {
		return w.maria.HandleXA(ctx, b, func(ctx context.Context, conn *sql.Conn) error { return add(ctx, conn, 30) })
	})
	xa := dtm.NewXA(w.server(), w.gid())
	xa.TimeoutToFail = time.Second
	inside := make(chan struct{})
	gone := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- xa.GlobalTransaction(t.Context(), func(ctx context.Context, x *dtm.XA) error {
			_, err := x.CallBranch(ctx, nil, in)
			close(inside)
			<-gone
			return err
		})
	}()
	<-inside
	w.ends(xa.GID, dtm.StatusFailed)
	w.has(100, 100)
	w.nothingIsPrepared()
	close(gone)
	if err := <-ended; !errors.Is(err, dtm.ErrFailure) {
		t.Errorf("submit after the deadline: %v", err)
	}
}

func (w *world) nothingIsPrepared() {
	w.t.Helper()
	for query, db := range map[string]*sql.DB{"xa recover": w.maria.DB, "select gid from pg_prepared_xacts": w.postgres.DB} {
		rows, err := db.QueryContext(w.t.Context(), query)
		if err != nil {
			w.t.Fatal(err)
		}
		if rows.Next() {
			w.t.Errorf("%s is not empty", query)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			w.t.Error(err)
		}
	}
}

func TestWorkflow(t *testing.T) {
	for _, tt := range []struct {
		amount          int
		stops           bool // the first run is not sure of its second branch; the door resumes it
		end             string
		maria, postgres int
		calls           []string
	}{
		{30, false, dtm.StatusSucceed, 130, 70, []string{"in action", "out action"}},
		{30, true, dtm.StatusSucceed, 130, 70, []string{"in action", "out action", "out action"}},
		{101, false, dtm.StatusFailed, 100, 100, []string{"in action", "out action", "in rollback"}},
	} {
		t.Run(fmt.Sprint(tt.end, ", stops: ", tt.stops), func(t *testing.T) {
			w := newWorld(t)
			in, out := w.mover("in", w.maria, tt.amount), w.mover("out", w.postgres, -tt.amount)
			runs := dtm.NewWorkflows(w.server(), w.app.URL+"/resume")
			w.mux.Handle("/resume", runs)
			stops := tt.stops
			err := runs.Register("transfer", func(ctx context.Context, wf *dtm.Workflow, data []byte) ([]byte, error) {
				for _, url := range []string{in, out} {
					back := func(ctx context.Context, b dtm.Branch) error { _, err := b.Post(ctx, url, nil); return err }
					_, err := wf.NewBranch().OnRollback(back).Do(ctx, func(ctx context.Context, b dtm.Branch) ([]byte, error) {
						answer, err := b.Post(ctx, url, nil)
						if url == out && stops {
							stops, err = false, errors.New("the answer is lost")
						}
						return answer, err
					})
					if err != nil {
						return nil, err
					}
				}
				return append([]byte("moved "), data...), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			gid := w.gid()
			_, err = runs.Execute(t.Context(), "transfer", gid, []byte("it"))
			if (err == nil) != (tt.end == dtm.StatusSucceed && !tt.stops) {
				t.Errorf("error = %v", err)
			}
			w.ends(gid, tt.end)
			w.has(tt.maria, tt.postgres)
			w.called(tt.calls...)
			result, err := runs.Execute(t.Context(), "transfer", gid, []byte("it"))
			if tt.end == dtm.StatusSucceed && (err != nil || string(result) != "moved it") || tt.end == dtm.StatusFailed && !errors.Is(err, dtm.ErrFailure) {
				t.Errorf("of what has ended: %s, %v", result, err)
			}
		})
	}
}
