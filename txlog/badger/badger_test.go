package badger_test

import (
	"testing"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txlog/txlogtest"
)

func TestBadgerConforms(t *testing.T) {
	txlogtest.Run(t, func(t *testing.T) func() txlog.Store {
		dir := t.TempDir()
		return func() txlog.Store {
			s, err := badger.Open(badger.Options{Dir: dir, RetainBytes: txlogtest.RetainBytes})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
	})
}
