//go:build linux

package fleet

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// report is what a run was like.
type report struct {
	*storm
	*load
	fate
	ended, settled time.Duration
	violations     int
}

// String is the timeline of the faults, each with its effects, and the sums.
func (r report) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, "\n%8s %6s  %-60s %s\n", "begin", "lasted", "fault", "transfers that began meanwhile, and packets")
	slices.SortFunc(r.struck, func(a, b struckFault) int { return a.began.Compare(b.began) })
	for _, f := range r.struck {
		r.effect(&out, f)
	}
	kinds, packets := map[Kind]int{}, struckFault{}.packets
	for _, f := range r.struck {
		kinds[f.Kind]++
		packets.Cut, packets.Lost, packets.Late = packets.Cut+f.packets.Cut, packets.Lost+f.packets.Lost, packets.Late+f.packets.Late
	}
	fmt.Fprintf(&out, "\n%v: %d faults (", r.ended.Round(time.Second), len(r.struck))
	for k := range NumKinds {
		fmt.Fprintf(&out, " %v %d", k, kinds[k])
	}
	fmt.Fprintf(&out, " ); packets cut %d, lost %d, late %d\n", packets.Cut, packets.Lost, packets.Late)
	done := r.committed
	fmt.Fprintf(&out, "%d transfers; transactions in the store: %d, committed %d, aborted %d, decisions %d\n", len(r.made), len(done), len(done)-r.aborted,
		r.aborted, r.decisions)
	r.answers(&out)
	for _, message := range []string{"journal adopted", "journal dropped", "journal retired"} {
		fmt.Fprintf(&out, "%6d times %q\n", r.said(message), message)
	}
	fmt.Fprintf(&out, "nothing open %v after the last fault; violations: %d", r.settled.Round(time.Millisecond), r.violations)
	return out.String()
}

// effect is a line of the timeline.
func (r report) effect(out *strings.Builder, f struckFault) {
	var committed, aborted, unknown int
	var slowest time.Duration
	for _, p := range r.made {
		if p.at.Before(f.began) || p.at.After(f.end) {
			continue
		}
		switch {
		case !p.answered:
			unknown++
		case p.committed:
			committed++
		default:
			aborted++
		}
		slowest = max(slowest, p.took)
	}
	fmt.Fprintf(out, "%7.1fs %5.1fs  %-60s %d committed, %d aborted, %d never told, slowest %v", f.began.Sub(r.storm.began).Seconds(),
		f.end.Sub(f.began).Seconds(), short(f.String()), committed, aborted, unknown, slowest.Round(time.Millisecond))
	if p := f.packets; p.Cut+p.Lost+p.Late > 0 {
		fmt.Fprintf(out, "; %d cut, %d lost, %d late of %d", p.Cut, p.Lost, p.Late, p.Cut+p.Lost+p.Passed)
	}
	if f.note != "" {
		fmt.Fprint(out, "; ", f.note)
	}
	fmt.Fprintln(out)
}

// short leaves out whom a host is cut off from where these are many.
func short(text string) string {
	const most = 60
	if len(text) <= most {
		return text
	}
	if head, _, many := strings.Cut(text, ","); many && strings.Contains(head, ">") {
		return strings.Fields(text)[0] + " " + strings.Fields(text)[1] + " " + strings.Fields(text)[2] + " all"
	}
	return text
}

// answers counts what clients were told at last, and how long they waited.
func (r report) answers(out *strings.Builder) {
	said, took := map[string]int{}, []time.Duration{}
	again := 0
	for _, p := range r.made {
		said[p.last]++
		took = append(took, p.took)
		if p.tries > 1 {
			again++
		}
	}
	slices.Sort(took)
	if len(took) > 0 {
		fmt.Fprintf(out, "to the final answer: median %v, p99 %v, most %v; %d needed more than one try\n", took[len(took)/2].Round(time.Millisecond),
			took[len(took)*99/100].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), again)
	}
	for _, text := range slices.SortedFunc(maps.Keys(said), func(a, b string) int { return cmp.Compare(said[b], said[a]) }) {
		fmt.Fprintf(out, "%6d %s\n", said[text], text)
	}
}

// said counts a message in the logs of all sidecars.
func (r report) said(message string) (n int) {
	for _, name := range r.storm.w.roster.Sidecars {
		n += strings.Count(r.storm.w.units[name].process.Output(), `"`+message+`"`)
	}
	return n
}
