package dtm

import (
	"log/slog"
	"testing"
	"time"
)

// TestRowThatACrashKeptIsNoPreparedSaga: a submit begins the saga and then takes its row away; between the two the power may go.
func TestRowThatACrashKeptIsNoPreparedSaga(t *testing.T) {
	m := &machines{}
	m.reset()
	door := func() *Service {
		s := New(Options{Engine: m, Chronicle: m, Rows: m, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
		t.Cleanup(s.Close)
		return s
	}
	saga := func() *transaction {
		return &transaction{GID: "g", Type: typeSaga, Steps: []map[string]string{{"action": "http://h/a"}}, Payloads: []string{"{}"}}
	}
	s := door()
	if err := s.prepare(t.Context(), saga()); err != nil {
		t.Fatal(err)
	}
	row := m.rows[preparedPrefix+"g"]
	if err := s.submit(t.Context(), &transaction{GID: "g", Type: typeSaga}); err != nil {
		t.Fatal(err)
	}
	m.rows[preparedPrefix+"g"] = row
	s = door() // the next process

	q, err := s.query(t.Context(), "g")
	if err != nil || q.Transaction.Status != statusSubmitted {
		t.Errorf("query says %+v, %v, want it submitted", q.Transaction, err)
	}
	if len(m.rows) > 0 {
		t.Errorf("the row is still there: %q", m.rows)
	}
	if err := s.submit(t.Context(), &transaction{GID: "g", Type: typeSaga}); err != nil {
		t.Errorf("the submit, once more: %v", err)
	}
	if err := s.prepare(t.Context(), saga()); err == nil {
		t.Error("it may be prepared again")
	}
}
