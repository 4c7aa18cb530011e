package load

import "encoding/binary"

// content is the body of one connection's calls. It begins with the numbers of connection and call, so that an answer to
// another call is not taken for the right one; what follows differs by connection.
type content struct {
	bytes []byte
	conn  uint64
	calls uint64
}

// numberBytes is the least size of a body.
const numberBytes = 8

func newContent(conn, size int) *content {
	c := &content{bytes: make([]byte, max(size, numberBytes)), conn: uint64(conn)}
	for i := range c.bytes {
		c.bytes[i] = byte('a' + (i*7+conn)%26)
	}
	return c
}

// next numbers the next call and returns what it begins with.
func (c *content) next() []byte {
	c.calls++
	binary.BigEndian.PutUint64(c.bytes, c.conn<<40|c.calls)
	return c.bytes[:numberBytes]
}
