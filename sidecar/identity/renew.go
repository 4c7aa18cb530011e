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

// renewAfter is how long a certificate is left alone: half of its life, a tenth more or less, so that sidecars that
// started together do not come back together.
func renewAfter(c *x509.Certificate, now time.Time) time.Duration {
	life := c.NotAfter.Sub(c.NotBefore)
	due := c.NotBefore.Add(life/2 + time.Duration((rand.Float64()-0.5)*0.2*float64(life)))
	return max(due.Sub(now), 0)
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
