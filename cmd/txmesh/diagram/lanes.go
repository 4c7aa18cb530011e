package diagram

import (
	"slices"
	"strings"
)

// The columns: times are right-aligned in the first, the client's lane stands at left.
const (
	timeWidth = 9
	left      = 13
	gapMin    = 8
	gapMax    = 13
	textMin   = 30
)

// lane is one vertical line.
type lane struct {
	service string // whose pair it belongs to; empty: the client's
	title   string
	sidecar bool
}

// grid is the geometry of a drawing. Without lanes, because there are too many, it is a list.
type grid struct {
	lanes []lane
	gap   int
	text  int // column of the words
}

// layOut finds the lanes: the client's, the owner's pair, then a pair for each service in the order of their first
// branch. Where they do not fit, the sidecars of the callees go first, then all lanes.
func layOut(d Drawing) grid {
	for _, sidecars := range []bool{true, false} {
		g := grid{lanes: lanesOf(d, sidecars)}
		n := max(len(g.lanes)-1, 1)
		g.gap = min((d.Width-left-2-textMin)/n, gapMax)
		if g.gap >= gapMin {
			g.text = left + n*g.gap + 2
			return g
		}
	}
	return grid{text: left + 1}
}

func lanesOf(d Drawing, sidecars bool) []lane {
	var lanes []lane
	own := shortName(d.Service)
	if d.Rooted {
		lanes = append(lanes, lane{title: "client"})
	}
	lanes = append(lanes, lane{own, "service", false}, lane{own, "sidecar", true})
	for _, b := range d.Branches {
		s := b.service()
		if slices.ContainsFunc(lanes, func(l lane) bool { return l.service == s }) {
			continue
		}
		if sidecars && slices.ContainsFunc(d.Branches, func(o Branch) bool { return o.service() == s && o.Sidecar }) {
			lanes = append(lanes, lane{s, "sidecar", true})
		}
		lanes = append(lanes, lane{s, "service", false})
	}
	return lanes
}

// service is the name of the branch's pair of lanes.
func (b Branch) service() string {
	if s := shortName(b.Service); b.Service != "" {
		return s
	}
	if b.Name != "" {
		return b.Name
	}
	return "branch " + b.ID
}

// shortName drops the namespace.
func shortName(service string) string {
	if service == "" {
		return "owner"
	}
	return service[strings.LastIndexByte(service, '/')+1:]
}

// find returns the lane of a service or of its sidecar, or -1.
func (g grid) find(service string, sidecar bool) int {
	return slices.IndexFunc(g.lanes, func(l lane) bool { return l.service == service && l.sidecar == sidecar && l.title != "client" })
}

func (g grid) column(lane int) int { return left + lane*g.gap }

// titles are two lines: the services, and what stands on each lane.
func (g grid) titles() []string {
	if len(g.lanes) == 0 {
		return nil
	}
	upper, lower := blanks(g.text+gapMax), blanks(g.text+gapMax)
	for i, l := range g.lanes {
		center(lower, g.column(i), l.title, g.gap-1)
		if l.service == "" || i > 0 && g.lanes[i-1].service == l.service {
			continue
		}
		middle, width := g.column(i), g.gap-1
		if i+1 < len(g.lanes) && g.lanes[i+1].service == l.service {
			middle, width = middle+g.gap/2, 2*g.gap-1
		}
		center(upper, middle, l.service, width)
	}
	return []string{string(upper), string(lower)}
}

// center writes a text around a column, cut to a width.
func center(line []rune, column int, text string, width int) {
	letters := []rune(text)
	if len(letters) > width {
		letters = append(letters[:width-1:width-1], '…')
	}
	copy(line[column-len(letters)/2:], letters)
}

func blanks(n int) []rune { return slices.Repeat([]rune{' '}, n) }

// blank is a line without an arrow. The lane of a dead owner is broken.
func (g grid) blank(dead bool) string {
	line := blanks(g.text)
	for i, l := range g.lanes {
		line[g.column(i)] = '│'
		if dead && i == g.owner() && l.sidecar {
			line[g.column(i)] = '╎'
		}
	}
	return string(line)
}

// owner is the lane of the sidecar that keeps the journal.
func (g grid) owner() int { return slices.IndexFunc(g.lanes, func(l lane) bool { return l.sidecar }) }

// draw is a line with the arrow of a row.
func (g grid) draw(r row, dead bool) string {
	line := []rune(g.blank(dead))
	copy(line, []rune(padLeft(r.time, timeWidth)))
	if len(g.lanes) == 0 || len(r.path) == 0 {
		return string(line)
	}
	if r.sign != 0 {
		line[g.column(r.path[0])] = r.sign
	}
	if len(r.path) > 1 {
		g.arrow(line, r)
	}
	return string(line)
}

// arrow leads from the first lane of the path to the last. It passes through the lanes between that are on the path
// and crosses the others.
func (g grid) arrow(line []rune, r row) {
	from, to := g.column(r.path[0]), g.column(r.path[len(r.path)-1])
	shaft, head, tail, step := '─', '>', '├', 1
	if to < from {
		head, tail, step = '<', '┤', -1
	}
	if r.broken {
		shaft = '╌'
	}
	for c := from + step; c != to; c += step {
		switch {
		case (c-left)%g.gap != 0:
			line[c] = shaft
		case slices.Contains(r.path, (c-left)/g.gap):
			line[c] = '●'
		default:
			line[c] = '┼'
		}
	}
	line[to-step] = head
	line[from] = tail
	if g.lanes[r.path[0]].sidecar {
		line[from] = '●'
	}
	if g.lanes[r.path[len(r.path)-1]].sidecar {
		line[to] = '●'
	}
	if r.sign != 0 {
		line[from] = r.sign
	}
}

func padLeft(s string, width int) string {
	return strings.Repeat(" ", max(0, width-len([]rune(s)))) + s
}
