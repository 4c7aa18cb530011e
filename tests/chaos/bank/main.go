// Command bank is the service that package chaos kills: one account book in MariaDB and one in PostgreSQL, served as
// branches, and the workflow that moves money between them. It remembers nothing outside of the two databases.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"time"

	"txmesh/sdk/dtm"
	"txmesh/tests/chaos"
)

func main() {
	listen := flag.String("listen", "", "host:port of the service")
	door := flag.String("door", "", "base URL of the door")
	maria := flag.String("mariadb", "", "data source name")
	postgres := flag.String("postgres", "", "data source name")
	delayMax := flag.Duration("delay-max", 0, "longest pause before and after the work of a branch")
	flag.Parse()
	if err := serve(*listen, *door, *maria, *postgres, *delayMax); err != nil {
		fmt.Fprintln(os.Stderr, "bank:", err)
		os.Exit(1)
	}
}

func serve(listen, door, maria, postgres string, delayMax time.Duration) error {
	inMaria, err := chaos.OpenMariaDB(maria)
	if err != nil {
		return err
	}
	inPostgres, err := chaos.OpenPostgres(postgres)
	if err != nil {
		return err
	}
	url := "http://" + listen
	mux := http.NewServeMux()
	for path, l := range map[string]chaos.Ledger{"/mariadb": inMaria, "/postgres": inPostgres} {
		mux.Handle(path, dtm.Handle(func(ctx context.Context, b dtm.Branch, payload []byte) ([]byte, error) {
			pause(delayMax)
			// Whoever called may be gone: much of what is written goes on then.
			err := l.Serve(context.WithoutCancel(ctx), b, payload)
			pause(delayMax)
			return nil, err
		}))
		mux.Handle(path+"/asked", dtm.Handle(func(ctx context.Context, b dtm.Branch, _ []byte) ([]byte, error) {
			return nil, l.QueryPrepared(ctx, b)
		}))
	}
	runs := dtm.NewWorkflows(door, url+"/workflows")
	if err := runs.Register("transfer", func(ctx context.Context, wf *dtm.Workflow, data []byte) ([]byte, error) {
		return nil, transfer(ctx, wf, url, data)
	}); err != nil {
		return err
	}
	mux.Handle("/workflows", runs)
	mux.HandleFunc("POST /transfers/{gid}", func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err == nil {
			_, err = runs.Execute(r.Context(), "transfer", r.PathValue("gid"), data)
		}
		dtm.Answer(w, nil, err)
	})
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Println(`{"ready":true}`)
	return http.Serve(l, mux)
}

// pause makes it likely that a kill meets a call, before its work or after it.
func pause(longest time.Duration) {
	if longest > 0 {
		time.Sleep(rand.N(longest))
	}
}

// transfer is the workflow: it makes its moves one after the other, and takes them back if one is refused.
func transfer(ctx context.Context, wf *dtm.Workflow, bank string, data []byte) error {
	var moves []struct {
		Path string     `json:"path"`
		Move chaos.Move `json:"move"`
	}
	if err := json.Unmarshal(data, &moves); err != nil {
		return err
	}
	for _, m := range moves {
		post := func(ctx context.Context, b dtm.Branch) ([]byte, error) { return b.Post(ctx, bank+m.Path, m.Move) }
		back := func(ctx context.Context, b dtm.Branch) error { _, err := post(ctx, b); return err }
		if _, err := wf.NewBranch().OnRollback(back).Do(ctx, post); err != nil {
			return err
		}
	}
	return nil
}
