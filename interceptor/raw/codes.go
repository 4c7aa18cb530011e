package raw

// The codes of what is logged: a connection without a protocol has no answer to put them in.
const (
	CodeUnreachable = "TXM0233"
	CodeFull        = "TXM0234"
)

// Code is one row of the table of codes.
type Code struct {
	Code, Title string
	Remedy      string // what the reader can do
}

// Codes returns the table, in order of its numbers. The caller owns the slice.
func Codes() []Code {
	return []Code{
		{CodeUnreachable, "No endpoint took a connection that passes as bytes, and the client was reset", "check that one of the endpoints named in the log listens"},
		{CodeFull, "Too many connections pass as bytes, and one more was reset", "raise `max-connections`, or find out who keeps them open; txmesh_raw_connections tells how many there are"},
	}
}
