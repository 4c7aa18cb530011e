package sim

import (
	"flag"
	"fmt"
	"testing"
)

var fleetSeed = flag.Uint64("fleet", 0, "the one seed that TestFleets runs, with its trace")

// fleetOf is the world of TestFleets.
func fleetOf(seed uint64) Options {
	o := usual(seed)
	o.Fleet = true
	return o
}

// TestFleets runs worlds whose sidecars share a store, in which everything goes wrong that may.
func TestFleets(t *testing.T) {
	if *fleetSeed > 0 {
		o := fleetOf(*fleetSeed)
		o.Trace = true
		res := rigFor(t).Run(o)
		fmt.Print(res.Trace)
		if res.Law != "" {
			t.Fatalf("%s: %s", res.Law, res.Text)
		}
		return
	}
	each(t, max(*seeds/20, 20), func(i uint64) Options { return fleetOf(i + 1) }).log(t)
}
