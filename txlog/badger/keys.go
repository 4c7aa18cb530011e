package badger

import (
	"encoding/binary"
	"fmt"
	"time"

	"txmesh/txn"
)

// The first byte of a key says what the row is; the package comment describes the rows.
const (
	prefixOwner      = 'o'
	prefixStats      = 'n'
	prefixEntry      = 'e'
	prefixUnfinished = 'u'
	prefixListed     = 'l'
	prefixFinished   = 'f'
	prefixKey        = 'k'
	prefixTable      = 't'
	prefixLive       = 'v'
	prefixPadding    = 'z'
)

// metaPointer marks a row whose value is a pointer into the value log.
const metaPointer byte = 1

// Bounds of what becomes part of a key; Badger refuses keys of 65,000 bytes.
const (
	idBytesMax   = 1 << 10
	keyBytesMax  = 2 << 10
	nameBytesMax = 1 << 10
)

func entryKey(id txn.ID, seq uint32) []byte {
	k := make([]byte, 0, 1+2+len(id)+4)
	k = append(k, prefixEntry)
	k = binary.BigEndian.AppendUint16(k, uint16(len(id)))
	k = append(k, id...)
	return binary.BigEndian.AppendUint32(k, seq)
}

func unfinishedKey(id txn.ID) []byte { return append([]byte{prefixUnfinished}, id...) }

func specKey(key string) []byte { return append([]byte{prefixKey}, key...) }

// instant orders like the time itself: the sign bit is turned so that years before 1970 come first.
func instant(t time.Time) uint64 { return uint64(t.UnixNano()) ^ 1<<63 }

// listedKey sorts the newest first, and equal times by descending id as far as ids differ before they end.
func listedKey(begun time.Time, id txn.ID) []byte {
	k := binary.BigEndian.AppendUint64([]byte{prefixListed}, ^instant(begun))
	return append(k, invert(string(id))...)
}

// invert turns the order of strings around. The closing 0xff puts a string behind those that it begins.
func invert(s string) []byte {
	b := make([]byte, len(s)+1)
	for i := range len(s) {
		b[i] = ^s[i]
	}
	b[len(s)] = 0xff
	return b
}

func finishedKey(finished time.Time, id txn.ID) []byte {
	k := binary.BigEndian.AppendUint64([]byte{prefixFinished}, instant(finished))
	return append(k, id...)
}

// finishedKeyParts is the inverse of finishedKey.
func finishedKeyParts(k []byte) (time.Time, txn.ID, error) {
	if len(k) < 9 {
		return time.Time{}, "", fmt.Errorf("row %x: finish index with %d bytes, want at least 9", k, len(k))
	}
	nanos := int64(binary.BigEndian.Uint64(k[1:9]) ^ 1<<63)
	return time.Unix(0, nanos).UTC(), txn.ID(k[9:]), nil
}

// tablePrefix holds the length of the name, so that no table's rows lie between those of another.
func tablePrefix(name string) []byte {
	k := binary.BigEndian.AppendUint16([]byte{prefixTable}, uint16(len(name)))
	return append(k, name...)
}

func liveKey(p pointer) []byte {
	k := binary.BigEndian.AppendUint32([]byte{prefixLive}, p.segment)
	return binary.BigEndian.AppendUint32(k, p.offset)
}

func livePrefix(segment uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixLive}, segment)
}
