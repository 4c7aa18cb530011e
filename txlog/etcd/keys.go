package etcd

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"txmesh/txn"
)

// keys makes the keys that the package comment describes.
type keys struct{ prefix string }

func (k keys) lease(owner string) string { return k.prefix + "o/" + url.PathEscape(owner) }
func (k keys) beat(owner string) string  { return k.prefix + "b/" + url.PathEscape(owner) }
func (k keys) group(owner string) string { return k.prefix + "g/" + url.PathEscape(owner) }
func (k keys) leases() string            { return k.prefix + "o/" }
func (k keys) beats() string             { return k.prefix + "b/" }
func (k keys) groups() string            { return k.prefix + "g/" }
func (k keys) trimmed() string           { return k.prefix + "n" }
func (k keys) finishedAll() string       { return k.prefix + "f/" }
func (k keys) listedAll() string         { return k.prefix + "l/" }
func (k keys) unfinishedAll() string     { return k.prefix + "u/" }

func (k keys) entries(id txn.ID) string { return k.prefix + "e/" + url.PathEscape(string(id)) + "/" }

func (k keys) entry(id txn.ID, seq uint32) string { return fmt.Sprintf("%s%08x", k.entries(id), seq) }

func (k keys) unfinishedOf(owner string) string { return k.prefix + "u/" + url.PathEscape(owner) + "/" }

func (k keys) unfinished(owner string, id txn.ID) string {
	return k.unfinishedOf(owner) + url.PathEscape(string(id))
}

func (k keys) spec(key string) string { return k.prefix + "k/" + url.PathEscape(key) }

func (k keys) table(name string) string { return k.prefix + "t/" + url.PathEscape(name) + "/" }

// instant orders like the time itself: the sign bit is turned so that years before 1970 come first.
func instant(t time.Time) uint64 { return uint64(t.UnixNano()) ^ 1<<63 }

// listedFrom is where the finished transactions begin that were begun at this time or before.
func (k keys) listedFrom(begun time.Time) string {
	return fmt.Sprintf("%s%016x/", k.listedAll(), ^instant(begun))
}

// listed sorts the newest first, and equal times by descending id as far as ids differ before they end.
func (k keys) listed(begun time.Time, id txn.ID) string {
	b := make([]byte, len(id)+1)
	for i := range len(id) {
		b[i] = ^id[i]
	}
	b[len(id)] = 0xff // puts an id behind those that it begins
	return k.listedFrom(begun) + string(b)
}

func (k keys) finished(at time.Time, id txn.ID) string {
	return fmt.Sprintf("%s%016x/%s", k.finishedAll(), instant(at), url.PathEscape(string(id)))
}

// finishedParts is the inverse of finished.
func (k keys) finishedParts(key string) (time.Time, txn.ID, error) {
	nanos, escaped, _ := strings.Cut(strings.TrimPrefix(key, k.finishedAll()), "/")
	n, err := strconv.ParseUint(nanos, 16, 64)
	if err != nil {
		return time.Time{}, "", fmt.Errorf("key %q: time of the end: %w", key, err)
	}
	id, err := url.PathUnescape(escaped)
	if err != nil {
		return time.Time{}, "", fmt.Errorf("key %q: id: %w", key, err)
	}
	return time.Unix(0, int64(n^1<<63)).UTC(), txn.ID(id), nil
}

// unfinishedID is the id in a key of unfinishedOf(owner).
func (k keys) unfinishedID(owner, key string) (txn.ID, error) {
	id, err := url.PathUnescape(strings.TrimPrefix(key, k.unfinishedOf(owner)))
	if err != nil {
		return "", fmt.Errorf("key %q: id: %w", key, err)
	}
	return txn.ID(id), nil
}

// leaseOwner is the owner in a key of leases or beats.
func (k keys) leaseOwner(key string) (string, error) {
	owner, err := url.PathUnescape(key[len(k.leases()):])
	if err != nil {
		return "", fmt.Errorf("key %q: owner: %w", key, err)
	}
	return owner, nil
}
