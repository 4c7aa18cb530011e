// Package signals ends our servers: the first signal asks, the second ends the process at once. Start at Context.
package signals

import (
	"context"
	"os/signal"
	"syscall"
)

// Context ends with the first SIGTERM or SIGINT. By then signals have their default back, so that a second one ends the
// process even if it comes at the first moment at which somebody can see that the first one has.
func Context() context.Context {
	signals, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	ctx, end := context.WithCancel(context.Background())
	context.AfterFunc(signals, func() {
		stop()
		end()
	})
	return ctx
}
