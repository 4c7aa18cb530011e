package identity

import (
	"context"
	"crypto/x509"
	"math/rand/v2"
	"time"
)

const (
	retryMin = time.Second
	retryMax = time.Minute
)

// renewAfter is how long a certificate is left alone: half of what is left of its life, a tenth more or less, so that
// sidecars that started together do not come back together. When it began tells nothing: authorities set that back, for
// clocks that are behind.
func renewAfter(c *x509.Certificate, now time.Time) time.Duration {
	left := c.NotAfter.Sub(now)
	return max(time.Duration((0.4+0.2*rand.Float64())*float64(left)), retryMin)
}

// retryAfter doubles the pause from one failure to the next.
func retryAfter(failures int) time.Duration {
	pause := retryMin << min(failures-1, 10)
	return time.Duration((0.5 + 0.5*rand.Float64()) * float64(min(pause, retryMax)))
}

// rest waits, or returns false when the context ends.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
