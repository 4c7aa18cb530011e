package proxy

// isTokenByte is the tchar of RFC 9110, 5.6.2.
func isTokenByte(b byte) bool {
	switch {
	case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9':
		return true
	}
	switch b {
	case '!', '#', '$', '%', '&', '\'', '*', '+', '-', '.', '^', '_', '`', '|', '~':
		return true
	}
	return false
}

func isToken(s string) bool {
	for i := range len(s) {
		if !isTokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

// isValueByte is what a field value may hold: visible characters, space, tab and bytes above ASCII.
func isValueByte(b byte) bool { return b >= ' ' && b != 0x7f || b == '\t' }

func isSpace(b byte) bool { return b == ' ' || b == '\t' }

// equalFold compares ASCII without case; s is lower case or compared folded as well.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i := range b {
		if b[i] != s[i] && lower(b[i]) != lower(s[i]) {
			return false
		}
	}
	return true
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		return b + 'a' - 'A'
	}
	return b
}

// nameOf recognises the fields that the proxy reads.
func nameOf(b []byte) name {
	switch len(b) {
	case 2:
		return named(b, "te", teName)
	case 4:
		return named(b, "host", hostName)
	case 6:
		return named(b, "expect", expectName)
	case 7:
		return named(b, "upgrade", upgradeName)
	case 10:
		if n := named(b, "connection", connectionName); n != otherName {
			return n
		}
		return named(b, "keep-alive", keepAliveName)
	case 14:
		return named(b, "content-length", contentLengthName)
	case 16:
		if n := named(b, "proxy-connection", proxyName); n != otherName {
			return n
		}
	case 17:
		return named(b, "transfer-encoding", transferEncodingName)
	case 18:
		return named(b, "proxy-authenticate", proxyName)
	case 19:
		return named(b, "proxy-authorization", proxyName)
	case 25:
		return named(b, "proxy-authentication-info", proxyName)
	}
	return otherName
}

func named(b []byte, s string, n name) name {
	if equalFold(b, s) {
		return n
	}
	return otherName
}

// eachToken walks over a comma-separated list.
func eachToken(b []byte, f func(token []byte)) {
	for len(b) > 0 {
		i := 0
		for i < len(b) && b[i] != ',' {
			i++
		}
		if token := trim(b[:i]); len(token) > 0 {
			f(token)
		}
		if i == len(b) {
			return
		}
		b = b[i+1:]
	}
}

func hasToken(b []byte, s string) bool {
	found := false
	eachToken(b, func(token []byte) { found = found || equalFold(token, s) })
	return found
}

func lastToken(b []byte, s string) bool {
	var last []byte
	eachToken(b, func(token []byte) { last = token })
	return equalFold(last, s)
}

func trim(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// appendClean appends a field value; a byte that would end the line becomes a space.
func appendClean(dst []byte, value string) []byte {
	for i := range len(value) {
		b := value[i]
		if !isValueByte(b) {
			b = ' '
		}
		dst = append(dst, b)
	}
	return dst
}
