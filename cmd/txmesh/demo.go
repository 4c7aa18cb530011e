package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// demoOptions is how the demonstration is run.
type demoOptions struct {
	once   bool
	keep   bool
	source string
	bin    string
}

// bounds of the demonstration: nothing in it waits for ever.
const (
	startMax = 30 * time.Second // until a child is ready
	sceneMax = 60 * time.Second // one transfer with all that follows
	stopMax  = 4 * time.Second  // until a child that was asked to end is killed
)

func newDemoCommand() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Start three services with their sidecars and show three transfers, one through a kill -9",
		Long: `demo starts the bank of examples/bank, three services in three languages that know nothing of transactions, with a
sidecar beside each. It runs a transfer that succeeds, one that a service refuses, and one during which a sidecar is
killed with -9, and shows for each what the journal says and what became of the money. Then it stays up until Ctrl-C.
It needs the source tree, and Go to build it; Python and Node are used where they are found. docs/guide/demo.md walks
through it.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			// A reader that goes away must not leave the children behind, so writing to it is an error instead of the end
			// of this process. The signal itself says nothing: it comes for sockets too, as that of a sidecar killed here.
			signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
			s := newScreen(cmd.OutOrStdout(), os.Getenv)
			s.w = watchedWriter{s.w, cancel}
			return runDemo(ctx, s, o)
		},
	}
	c.Flags().BoolVar(&o.once, "once", false, "end after the three transfers")
	c.Flags().BoolVar(&o.keep, "keep", false, "keep the directory with the logs, the journals and the services' own files")
	c.Flags().StringVar(&o.source, "source", "", "source tree of txmesh (default: the module around the current directory)")
	c.Flags().StringVar(&o.bin, "bin", os.Getenv("TXMESH_BIN"), "directory with binaries to use instead of building them [TXMESH_BIN]")
	return c
}

// watchedWriter calls failed when w takes no more.
type watchedWriter struct {
	w      io.Writer
	failed func()
}

func (w watchedWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.failed()
	}
	return n, err
}

// runDemo is the whole demonstration. When it returns, no child of it is left.
func runDemo(ctx context.Context, s *screen, o demoOptions) (err error) {
	dir, err := os.MkdirTemp("", "txmesh-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demonstration: %w; is TMPDIR writable?", err)
	}
	d := &demo{screen: s, dir: dir}
	defer func() {
		d.stop()
		err = d.cleanUp(o, err)
	}()
	s.say("%s", s.strong("Three services that know nothing of transactions, a sidecar beside each, and one policy."))
	if d.programs, err = findPrograms(ctx, s, o, dir); err != nil {
		return err
	}
	if err := d.start(ctx); err != nil {
		return err
	}
	s.say("\nA line of a diagram is a record in the journal of the sidecar beside transfers, with its time.")
	s.say("What the sidecar cannot know, its own death and what the client sees, was added by this program.")
	began := time.Now()
	for i, sc := range scenes() {
		if err := d.play(ctx, i+1, sc); err != nil {
			return err
		}
	}
	s.say("\n%s", s.good(fmt.Sprintf("All three transfers ended as promised, in %s.", took(time.Since(began)))))
	if o.once {
		return nil
	}
	d.printAddresses()
	defer s.say("\nending all processes")
	return d.wait(ctx)
}

// wait stays up until Ctrl-C, or until a child ends that should not.
func (d *demo) wait(ctx context.Context) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, p := range d.children() {
			if !p.running() {
				return fmt.Errorf("%s ended by itself: %w\n%s", p.name, p.err, p.tail())
			}
		}
	}
}

// cleanUp removes the directory unless it is to be kept, and turns an error into one that says what to do.
func (d *demo) cleanUp(o demoOptions, err error) error {
	if o.keep {
		d.screen.say("\nlogs, journals and the services' own files: %s", d.dir)
	} else {
		err = errors.Join(err, os.RemoveAll(d.dir))
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return errors.New("demo: interrupted; all processes have been ended")
	case o.keep:
		return fmt.Errorf("demo: %w\nlook at the logs in %s", err, filepath.Join(d.dir, "log"))
	default:
		return fmt.Errorf("demo: %w\nrun it again with --keep to keep the logs and the journals", err)
	}
}

// took is a duration for people.
func took(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
