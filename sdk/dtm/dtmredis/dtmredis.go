// Package dtmredis is the local half of DTM branches whose work is one number in Redis: the barrier, which makes
// repeats, late calls and empty compensations harmless, in one script with the work itself. It opens no connection.
// Start at Barrier.AdjustAmount.
package dtmredis

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"txmesh/sdk/dtm"
)

// Expiry is how long Redis remembers a call by default. It must be longer than any transaction can last.
const Expiry = 7 * 24 * time.Hour

// Barrier guards what one call to a branch does in Redis. Make one for each request: its calls are told apart by
// their order, which must be the same whenever the request is repeated.
type Barrier struct {
	Expiry time.Duration // zero means the constant Expiry
	branch dtm.Branch
	calls  atomic.Int32
}

// NewBarrier returns the barrier of one request.
func NewBarrier(b dtm.Branch) *Barrier { return &Barrier{branch: b} }

// adjust looks at its markers before it looks at the amount: a repeat has succeeded, whatever is left now. The amount
// is changed before the markers are written, because an error of Redis takes nothing back.
// KEYS: amount, own marker, marker of the op that this takes back. ARGV: delta, own op, origin op, seconds.
const adjust = `
if redis.call('GET', KEYS[2]) then
  return 'DUPLICATE'
end
if ARGV[3] ~= '' and not redis.call('GET', KEYS[3]) then
  redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[4])
  redis.call('SET', KEYS[3], 'rollback', 'EX', ARGV[4])
  return 'EMPTY'
end
local amount = redis.call('GET', KEYS[1])
if not amount or amount + ARGV[1] < 0 then
  return 'FAILURE'
end
redis.call('INCRBY', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[4])
return 'SUCCESS'
`

// AdjustAmount adds delta to the integer at key. It returns ErrFailure if there is none or it would become negative. It
// returns nil and changes nothing if this op was done before, if what it takes back was never done, or if it comes
// after it was taken back; a message whose end is decided gives ErrDuplicated instead. In a cluster the gid must carry
// the hash tag of the key.
func (b *Barrier) AdjustAmount(ctx context.Context, rdb redis.Scripter, key string, delta int64) error {
	if err := b.branch.Check(); err != nil {
		return err
	}
	origin, id := originOf(b.branch.Op), b.calls.Add(1)
	marker := func(op string) string { return fmt.Sprintf("%s-%s-%s-%02d", b.branch.GID, b.branch.ID, op, id) }
	verdict, err := redis.NewScript(adjust).Run(ctx, rdb, []string{key, marker(b.branch.Op), marker(origin)},
		delta, b.branch.Op, origin, seconds(b.Expiry)).Text()
	switch {
	case err != nil:
		return fmt.Errorf("adjust %s for %s of branch %s of %s: %w", key, b.branch.Op, b.branch.ID, b.branch.GID, err)
	case verdict == "FAILURE":
		return fmt.Errorf("adjust %s by %d: there is not enough: %w", key, delta, dtm.ErrFailure)
	case verdict == "DUPLICATE" && b.branch.Op == dtm.OpMsg:
		return fmt.Errorf("message %s: %w", b.branch.GID, dtm.ErrDuplicated)
	}
	return nil
}

const queryPrepared = `
local marker = redis.call('GET', KEYS[1])
if not marker then
  redis.call('SET', KEYS[1], 'rollback', 'EX', ARGV[1])
  marker = 'rollback'
end
return marker
`

// QueryPrepared answers the question about a message whose sender works with AdjustAmount: nil if it has done its
// work, ErrFailure if it has not, and then it never will.
func (b *Barrier) QueryPrepared(ctx context.Context, rdb redis.Scripter) error {
	if err := b.branch.Check(); err != nil {
		return err
	}
	marker, err := redis.NewScript(queryPrepared).Run(ctx, rdb, []string{b.branch.GID + "-00-" + dtm.OpMsg + "-01"}, seconds(b.Expiry)).Text()
	if err != nil {
		return fmt.Errorf("query message %s: %w", b.branch.GID, err)
	}
	if marker == dtm.OpRollback {
		return fmt.Errorf("message %s: its sender has not done its work: %w", b.branch.GID, dtm.ErrFailure)
	}
	return nil
}

// originOf names the op that an op takes back, or nothing.
func originOf(op string) string {
	switch op {
	case dtm.OpCancel:
		return dtm.OpTry
	case dtm.OpCompensate, dtm.OpRollback:
		return dtm.OpAction
	}
	return ""
}

func seconds(expiry time.Duration) int64 {
	if expiry <= 0 {
		expiry = Expiry
	}
	return int64((expiry + time.Second - 1) / time.Second)
}
