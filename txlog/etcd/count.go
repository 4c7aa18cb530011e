package etcd

import (
	"context"
	"encoding/json"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"txmesh/txlog"
)

// counted is a row that counts bytes, and when it was written.
type counted struct {
	Epoch  uint64 `json:"epoch,omitempty"`
	Number uint64 `json:"number,omitempty"` // of the transaction that wrote it, at that epoch
	Bytes  int64  `json:"bytes"`

	revision int64
}

func (c counted) String() string {
	b, err := json.Marshal(c)
	if err != nil {
		panic(fmt.Sprintf("etcd: encode count: %v", err))
	}
	return string(b)
}

func (c counted) minus(bytes int64) string { return counted{Bytes: c.Bytes - bytes}.String() }

func (e *Engine) readGroup(ctx context.Context, owner string) (counted, error) {
	return e.readCounted(ctx, e.keys.group(owner))
}

func (e *Engine) readTrimmed(ctx context.Context) (counted, error) {
	return e.readCounted(ctx, e.keys.trimmed())
}

func (e *Engine) readCounted(ctx context.Context, key string) (counted, error) {
	r, err := e.readAlways(ctx, clientv3.OpGet(key))
	if err != nil {
		return counted{}, err
	}
	return parseCounted(r[0])
}

// parseCounted reads the only row of an answer; none counts nothing.
func parseCounted(rows []*mvccpb.KeyValue) (counted, error) {
	var c counted
	if len(rows) == 0 {
		return c, nil
	}
	return c, c.parse(rows[0])
}

func (c *counted) parse(kv *mvccpb.KeyValue) error {
	if err := json.Unmarshal(kv.Value, c); err != nil {
		return fmt.Errorf("row %q: %w: %w", kv.Key, err, txlog.ErrCorrupt)
	}
	c.revision = kv.ModRevision
	return nil
}
