package etcd_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"txmesh/tests/databases"
	"txmesh/txlog"
	"txmesh/txlog/etcd"
	"txmesh/txlog/txlogtest"
)

func TestEtcdConforms(t *testing.T) {
	t.Parallel()
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprint(members, "-members"), func(t *testing.T) {
			t.Parallel()
			cluster := databases.StartEtcd(t, members)
			var places atomic.Int32
			txlogtest.RunShared(t, func(t *testing.T) txlog.Shared {
				return open(t, cluster, func(o *etcd.Options) {
					o.Prefix = fmt.Sprintf("/place-%d/", places.Add(1))
					o.RetainBytes = txlogtest.RetainBytes
				})
			})
		})
	}
}

func open(tb testing.TB, c *databases.Etcd, change ...func(*etcd.Options)) *etcd.Engine {
	tb.Helper()
	o := etcd.Options{Endpoints: c.Endpoints()}
	for _, f := range change {
		f(&o)
	}
	e, err := etcd.Open(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = e.Close() }) // the test has closed it, or failed
	return e
}
