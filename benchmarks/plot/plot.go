// Package plot draws measurements as SVG that can be read on light and on dark pages: bars with their spread, and curves of
// latencies. It knows nothing of what was measured, and picks no figures. Start at Bars and Curves.
package plot

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"strings"
)

// Series is what keeps its colour in all plots.
type Series struct {
	Name string
	// Color is between 0 and Colors-1.
	Color int
}

// Colors is how many series can be told apart.
const Colors = 8

const (
	width   = 860
	margin  = 16
	lineMax = 120 // characters of 12 px that fit in the width
)

// canvas collects the elements of one drawing.
type canvas struct {
	bytes.Buffer
	height float64
}

func (c *canvas) add(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

// text writes a line; anchor is start, middle or end.
func (c *canvas) text(class, anchor string, x, y float64, s string) {
	c.add(`<text class="%s" x="%.1f" y="%.1f" text-anchor="%s">%s</text>`, class, x, y, anchor, html.EscapeString(s))
}

// head writes title and subtitle, and moves below them.
func (c *canvas) head(title, subtitle string) {
	c.text("title", "start", margin, margin+14, title)
	c.height = margin + 22
	for _, line := range wrap(subtitle, lineMax) {
		c.height += 16
		c.text("soft", "start", margin, c.height, line)
	}
	c.height += 12
}

// wrap breaks a text into lines of at most so many characters.
func wrap(s string, most int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(s) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > most:
			lines, line = append(lines, line), word
		default:
			line += " " + word
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

// style has the colours for both schemes: those of series can be read on either ground.
const style = `text{font:12px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:#1f2328}
.title{font-size:16px;font-weight:600}.group{font-weight:600}.soft{fill:#59636e}
.ground{fill:#ffffff}.grid{stroke:#d1d9e0;stroke-width:1}.spread{stroke:#1f2328;stroke-width:1.5}
.f0{fill:#8c959f}.f1{fill:#b98300}.f2{fill:#1f9d55}.f3{fill:#2f81f7}.f4{fill:#9a63f0}.f5{fill:#e5534b}.f6{fill:#db61a2}.f7{fill:#0e9aa7}
.l{fill:none;stroke-width:2}
.s0{stroke:#8c959f}.s1{stroke:#b98300}.s2{stroke:#1f9d55}.s3{stroke:#2f81f7}.s4{stroke:#9a63f0}.s5{stroke:#e5534b}.s6{stroke:#db61a2}.s7{stroke:#0e9aa7}
@media (prefers-color-scheme: dark){text{fill:#f0f6fc}.soft{fill:#9198a1}.ground{fill:#0d1117}.grid{stroke:#3d444d}.spread{stroke:#f0f6fc}}`

func (c *canvas) writeTo(w io.Writer, title string) error {
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0f" width="%d" height="%.0f" role="img" aria-label="%s">
<style>%s</style>
<rect class="ground" width="100%%" height="100%%"/>
%s</svg>
`, width, c.height+margin, width, c.height+margin, html.EscapeString(title), style, c.String())
	return err
}
