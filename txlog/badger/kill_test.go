package badger_test

import (
	"testing"

	"txmesh/txlog"
	"txmesh/txlog/badger"
	"txmesh/txlog/txlogtest"
)

func TestMain(m *testing.M) { txlogtest.Main(m, openSmall) }

// openSmall opens a store whose logs and segments change often.
func openSmall(dir string) (txlog.Store, error) {
	return badger.Open(badger.Options{
		Dir: dir, MemtableBytes: 1 << 20, SegmentBytes: 1 << 20, ReserveBytes: -1, RetainBytes: 8 << 20,
	})
}

func TestNothingAcknowledgedIsLostWhenTheProcessIsKilled(t *testing.T) {
	txlogtest.Kills(t, 8, openSmall)
}
