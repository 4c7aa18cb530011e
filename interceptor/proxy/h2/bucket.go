package h2

import "time"

// bucket bounds how often something may happen. It asks for the time only when it is empty.
type bucket struct {
	left, burst int
	rate        int // a second
	since       time.Time
}

func newBucket(burst, rate int) bucket {
	return bucket{left: burst, burst: burst, rate: rate, since: time.Now()}
}

// take reports whether it may happen once more.
func (b *bucket) take() bool {
	if b.left == 0 {
		now := time.Now()
		if n := int(now.Sub(b.since).Seconds() * float64(b.rate)); n > 0 {
			b.left, b.since = min(n, b.burst), now
		}
	}
	if b.left == 0 {
		return false
	}
	b.left--
	return true
}

// give makes up for some: something useful has happened.
func (b *bucket) give() { b.left = min(b.left+4, b.burst) }
