package plot

import (
	"fmt"
	"io"
	"strconv"
)

// Bar is one value with the least and the most that was seen of it.
type Bar struct {
	Series
	Value, Least, Most float64
}

// Group is bars that are compared with each other; it has a scale of its own.
type Group struct {
	Name string
	Bars []Bar
}

const (
	barHeight = 14
	barPitch  = 19
	nameWidth = 130
	textWidth = 215 // of a value and its spread
)

// Bars draws groups of bars that lie, one below the other, from zero.
func Bars(w io.Writer, title, subtitle string, groups []Group) error {
	var c canvas
	c.head(title, subtitle)
	for _, g := range groups {
		c.height += 22
		c.text("group", "start", margin, c.height, g.Name)
		c.height += 8
		c.bars(g)
	}
	return c.writeTo(w, title)
}

func (c *canvas) bars(g Group) {
	most := 0.0
	for _, b := range g.Bars {
		most = max(most, b.Value, b.Most)
	}
	if most == 0 {
		most = 1
	}
	left := float64(margin + nameWidth)
	at := func(v float64) float64 { return left + v/most*(width-margin-textWidth-left) }
	for _, b := range g.Bars {
		middle := c.height + barPitch/2.0
		c.text("soft", "end", left-8, middle+4, b.Name)
		c.add(`<rect class="f%d" x="%.1f" y="%.1f" width="%.1f" height="%d" rx="2"/>`, b.Color%Colors, left, middle-barHeight/2, max(at(b.Value)-left, 1), barHeight)
		label := short(b.Value)
		if b.Most > b.Least {
			c.add(`<path class="spread" d="M%.1f %.1fH%.1fM%.1f %.1fv6M%.1f %.1fv6"/>`, at(b.Least), middle, at(b.Most), at(b.Least), middle-3, at(b.Most), middle-3)
			label += fmt.Sprintf("  (%s to %s)", short(b.Least), short(b.Most))
		}
		c.text("soft", "start", at(max(b.Value, b.Most))+8, middle+4, label)
		c.height += barPitch
	}
}

// short writes a number with three digits or, if it has more before its point, with commas.
func short(v float64) string {
	switch {
	case v < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	s := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
