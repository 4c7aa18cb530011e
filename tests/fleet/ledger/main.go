// Command ledger is a replica of a service that keeps account books in a database that all its replicas share. It answers a
// repeated Idempotency-Key as before, and remembers nothing itself. It knows nothing of transactions but the id that it
// writes down for the checker.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"txmesh/tests/fleet"
)

func main() {
	listen := flag.String("listen", "", "host:port of the service")
	dsn := flag.String("database", "", "data source name")
	kind := flag.String("kind", "", "withdrawal or deposit")
	flag.Parse()
	if err := serve(*listen, *dsn, *kind); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
}

func serve(listen, dsn, kind string) error {
	books, err := fleet.OpenBooks(dsn)
	if err != nil {
		return err
	}
	s := service{books, 1}
	if kind == "withdrawal" {
		s.sign = -1
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /accounts/{account}/"+kind+"s", s.do)
	mux.HandleFunc("DELETE /accounts/{account}/"+kind+"s/{id}", s.undo)
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Println("{}") // ready
	return http.Serve(l, mux)
}

type service struct {
	books fleet.Books
	sign  int64 // of what a change adds
}

func (s service) do(w http.ResponseWriter, r *http.Request) {
	var want struct {
		Amount   int64
		Transfer string
	}
	account, err := strconv.Atoi(r.PathValue("account"))
	err = errors.Join(err, json.NewDecoder(r.Body).Decode(&want))
	key := strings.Trim(r.Header.Get("Idempotency-Key"), `"`)
	if err != nil || key == "" {
		http.Error(w, fmt.Sprintf("want an account, an amount and an Idempotency-Key, got %q: %v", key, err), http.StatusBadRequest)
		return
	}
	branch := r.Header.Get("Tx-Branch")
	id, err := s.books.Do(r.Context(), fleet.Change{Key: key, Tx: branch[:max(0, strings.LastIndex(branch, "-"))], Transfer: want.Transfer, Account: account, Amount: s.sign * want.Amount})
	answer(w, http.StatusCreated, fmt.Sprintf(`{"id":"%d"}`, id), err)
}

func (s service) undo(w http.ResponseWriter, r *http.Request) {
	account, err := strconv.Atoi(r.PathValue("account"))
	id, idErr := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err := errors.Join(err, idErr); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer(w, http.StatusOK, "{}", s.books.Undo(r.Context(), account, id))
}

func answer(w http.ResponseWriter, status int, body string, err error) {
	switch {
	case errors.Is(err, fleet.ErrRefused):
		status = http.StatusConflict
	case errors.Is(err, fleet.ErrUnknown):
		status = http.StatusNotFound
	case err != nil:
		status = http.StatusInternalServerError
	}
	if err != nil {
		text, _ := json.Marshal(map[string]string{"error": err.Error()}) // strings always marshal
		body = string(text)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body)) // the caller may be gone
}
