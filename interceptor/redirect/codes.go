package redirect

// The codes of what is logged: a connection that is refused has no answer to put them in.
const (
	CodeLoop    = "TXM0232"
	CodeUnknown = "TXM0235"
)

// Code is one row of the table of codes.
type Code struct {
	Code, Title string
	Remedy      string // what the reader can do
}

// Codes returns the table, in order of its numbers. The caller owns the slice.
func Codes() []Code {
	return []Code{
		{CodeLoop, "A redirected connection leads back to the sidecar and was reset", "exclude the sidecar by its user id or its mark, and its own ports: docs/guide/transparent.md shows the rules"},
		{CodeUnknown, "A connection to a port of transparent mode was not redirected and was reset", "call the service itself; only rules of the firewall lead to that port"},
	}
}
