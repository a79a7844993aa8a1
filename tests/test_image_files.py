"""Single image files: every mode, depth and orientation, every transform, and what bad files are told."""

import io
import os
import re
import struct
import zlib

import numpy as np
import PIL.Image
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dnnlib.util import UserError
from tests.dataset_testutil import Base, random_images
from training.datasets import image_files
from training.datasets.base import check_image_size
from training.datasets.image_files import ImageOptions, load_image

sides = st.integers(1, 40)
quick = settings(max_examples=60, deadline=None)


def encode(image: PIL.Image.Image | np.ndarray, fmt: str = 'PNG', **options) -> bytes:
    file = io.BytesIO()
    picture = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    picture.save(file, fmt, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, [height, width, channels]).astype(np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


class ModesTest(Base):

    def test_plain_modes(self):
        pixels = noise(6, 8)
        gray = PIL.Image.fromarray(pixels).convert('L')
        for mode, picture, expected in [
            ('RGB', PIL.Image.fromarray(pixels), pixels),
            ('L', gray, np.asarray(gray)[:, :, None]),
            ('1', gray.convert('1'), np.asarray(gray.convert('1'))[:, :, None] * np.uint8(255)),
            ('P', gray.convert('P'), np.repeat(np.asarray(gray)[:, :, None], 3, axis=2)),
        ]:
            self.assertEqual(picture.mode, mode)
            self.assertAllEqual(load_image(encode(picture)), expected)
        self.assertAllEqual(load_image(encode(gray), options=ImageOptions(channels=3)),
                            np.repeat(np.asarray(gray)[:, :, None], 3, axis=2))
        luma = load_image(encode(pixels), options=ImageOptions(channels=1))
        self.assertEqual(luma.shape, (6, 8, 1))
        self.assertAllClose(luma[:, :, 0], pixels @ [0.299, 0.587, 0.114], rtol=0, atol=1)
        four = load_image(encode(pixels), options=ImageOptions(channels=4))
        self.assertAllEqual(four, np.concatenate([pixels, np.full([6, 8, 1], 255)], axis=2))

    def test_cmyk(self):
        inks = noise(6, 8, 4)
        data = encode(PIL.Image.fromarray(inks, 'CMYK'), 'TIFF')
        ink, black = inks[:, :, :3].astype(float), inks[:, :, 3:].astype(float)
        self.assertAllClose(load_image(data), (255 - ink) * (255 - black) / 255, rtol=0, atol=1)
        flat = PIL.Image.new('CMYK', (16, 16), (10, 60, 100, 30))
        found = load_image(encode(flat, 'JPEG', quality=95))[8, 8]
        self.assertAllClose(found, [216, 172, 137], rtol=0, atol=3)

    def test_alpha(self):
        pixels = noise(9, 7, 4)
        with self.assertRaises(UserError) as caught:
            load_image(encode(pixels), 'some.png')
        self.assert_message(caught.exception, 'some.png', '--background=', '--channels=4')
        alpha = pixels[:, :, 3:] / 255
        colour = np.array([10, 200, 77])
        found = load_image(encode(pixels), options=ImageOptions(background=(10, 200, 77)))
        self.assertAllEqual(found, np.rint(pixels[:, :, :3] * alpha + colour * (1 - alpha)))
        self.assertAllEqual(load_image(encode(pixels), options=ImageOptions(channels=4)), pixels)
        opaque = pixels.copy()
        opaque[:, :, 3] = 255
        self.assertAllEqual(load_image(encode(opaque)), pixels[:, :, :3])

    def test_gray_with_alpha(self):
        pixels = noise(9, 7, 2)
        data = encode(PIL.Image.fromarray(pixels, 'LA'))
        alpha = pixels[:, :, 1:] / 255
        gray = load_image(data, options=ImageOptions(background=(9, 9, 9)))
        self.assertAllEqual(gray, np.rint(pixels[:, :, :1] * alpha + 9 * (1 - alpha)))
        colour = load_image(data, options=ImageOptions(background=(9, 9, 100)))
        self.assertAllEqual(colour, np.rint(pixels[:, :, :1] * alpha + np.array([9, 9, 100]) * (1 - alpha)))
        self.assertAllEqual(load_image(data, options=ImageOptions(channels=4)), pixels[:, :, [0, 0, 0, 1]])

    def test_palette_with_transparency(self):
        indices = np.random.RandomState(0).randint(0, 4, [8, 8]).astype(np.uint8)
        picture = PIL.Image.fromarray(indices, 'P')
        palette = noise(1, 4, 3)[0]
        picture.putpalette(palette.tobytes())
        expected = palette[indices]
        expected[indices == 2] = [1, 2, 3]
        for fmt in ['PNG', 'GIF']:
            data = encode(picture, fmt, transparency=2)
            self.assertAllEqual(load_image(data, options=ImageOptions(background=(1, 2, 3))), expected)
            with self.assertRaisesRegex(UserError, 'transparent'):
                load_image(data)

    def test_sixteen_bits(self):
        values = np.random.RandomState(0).randint(0, 65536, [64, 64])
        values[0] = np.arange(64) * 257
        values[1] = np.arange(64) * 257 + 128
        values[2] = np.arange(64) * 257 + 129
        values[3] = 65535
        for dtype, fmt in [('<u2', 'PNG'), ('<u2', 'TIFF'), ('>u2', 'TIFF')]:
            found = load_image(encode(values.astype(dtype), fmt))
            self.assertAllEqual(found[:, :, 0], np.rint(values / 257))
        data = encode(values.astype('<u2'), transparency=65535)
        found = load_image(data, options=ImageOptions(background=(7, 7, 7)))
        self.assertAllEqual(found[:, :, 0], np.where(values == 65535, 7, np.rint(values / 257)))

    def test_sixteen_bit_colour(self):
        """Pillow cannot write these, so the file is put together here; it keeps the upper byte."""
        values = np.random.RandomState(0).randint(0, 65536, [5, 6, 3]).astype('>u2')
        rows = b''.join(b'\0' + row.tobytes() for row in values)
        data = (b'\x89PNG\r\n\x1a\n' + png_chunk(b'IHDR', struct.pack('>IIBBBBB', 6, 5, 16, 2, 0, 0, 0))
                + png_chunk(b'IDAT', zlib.compress(rows)) + png_chunk(b'IEND', b''))
        self.assertAllEqual(load_image(data), values >> 8)

    def test_unknown_range_is_refused(self):
        for values in [np.ones([4, 4], np.float32), np.ones([4, 4], np.int32)]:
            with self.assertRaises(UserError) as caught:
                load_image(encode(values, 'TIFF'), 'deep.tif')
            self.assert_message(caught.exception, 'deep.tif', '32 bits', 'Convert')

    def test_first_picture_of_an_animation(self):
        first, second = (PIL.Image.fromarray(noise(8, 8, 3, seed)) for seed in (1, 2))
        for fmt in ['PNG', 'WEBP', 'TIFF']:
            options = {'lossless': True} if fmt == 'WEBP' else {}
            data = encode(first, fmt, save_all=True, append_images=[second], **options)
            self.assertAllEqual(load_image(data), np.asarray(first))

    def test_orientations(self):
        pixels = noise(5, 8)
        turned = {1: pixels, 2: pixels[:, ::-1], 3: np.rot90(pixels, 2), 4: pixels[::-1],
                  5: np.transpose(pixels, [1, 0, 2]), 6: np.rot90(pixels, -1),
                  7: np.rot90(np.transpose(pixels, [1, 0, 2]), 2), 8: np.rot90(pixels, 1)}
        for orientation, expected in turned.items():
            exif = PIL.Image.Exif()
            exif[0x0112] = orientation
            for fmt in ['PNG', 'TIFF', 'WEBP']:
                data = encode(pixels, fmt, exif=exif, **({'lossless': True} if fmt == 'WEBP' else {}))
                self.assertAllEqual(load_image(data), expected)
                with image_files.open_image(data) as image:
                    self.assertEqual(image_files.oriented_size(image), expected.shape[1::-1])
        data = encode(pixels, exif=b'Exif\0\0 damaged')
        self.assertAllEqual(load_image(data), pixels)


class TransformTest(Base):

    @quick
    @given(height=sides, width=sides, channels=st.sampled_from([1, 3, 4]),
           transform=st.sampled_from(image_files.TRANSFORMS), new_width=st.one_of(st.none(), sides),
           new_height=st.one_of(st.none(), sides), resize_filter=st.sampled_from(image_files.RESIZE_FILTERS))
    def test_shapes_and_constants(self, height, width, channels, transform, new_width, new_height,
                                  resize_filter):
        """The promised shape; a constant image stays constant, inside a frame of the colour of padding."""
        new_height = new_height if new_width else None
        colour = (30, 30, 30) if channels == 1 else (30, 90, 200)
        value = np.array([*colour, 255][:channels] if channels != 1 else [30], np.uint8)
        pixels = np.broadcast_to(value, [height, width, channels])
        options = ImageOptions(channels, colour, transform, new_width, new_height, resize_filter)
        try:
            result = image_files.transform_image(pixels, 'x', options)
        except UserError as error:
            self.assertEqual(transform, 'none')
            self.assertIn('--transform=center-crop', str(error))
            target = new_width, new_height or new_width
            self.assertGreaterEqual(max(abs(width * target[1] / height - target[0]),
                                        abs(height * target[0] / width - target[1])), 0.5 - 1e-9)
            return
        expected = {
            'none': (new_width or width, (new_height or new_width) if new_width else height),
            'center-crop': (new_width or min(width, height), new_height or new_width or min(width, height)),
            'pad': (new_width or max(width, height), new_height or new_width or max(width, height)),
        }.get(transform)
        if expected is None and new_width:
            expected = (max(new_width, new_height or max(round(new_width * .75), 1)),) * 2
        if expected is not None:
            self.assertEqual(result.shape, (expected[1], expected[0], channels))
        self.assertEqual(result.dtype, np.uint8)
        self.assertEqual(image_files.transformed_size((width, height), 'x', options), result.shape[1::-1])
        is_value = (result == value).all(axis=2)
        padding = result[~is_value]
        self.assertTrue((padding == 0).all())
        self.assertTrue(is_value[(result.shape[0] - 1) // 2, (result.shape[1] - 1) // 2])
        if transform in ('none', 'center-crop') or (transform == 'pad' and channels != 4):
            self.assertTrue(is_value.all())

    @quick
    @given(height=sides, width=sides)
    def test_crop_and_pad_without_resizing(self, height, width):
        pixels = noise(height, width)
        side, longer = min(height, width), max(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = image_files.transform_image(pixels, 'x', ImageOptions(transform='center-crop'))
        self.assertAllEqual(square, pixels[top:top + side, left:left + side])
        padded = image_files.transform_image(pixels, 'x', ImageOptions(transform='pad', background=(1, 2, 3)))
        before = [(longer - size) // 2 for size in (height, width)]
        widths = [(b, longer - size - b) for b, size in zip(before, (height, width), strict=True)]
        frame = np.stack([np.pad(pixels[:, :, c], widths, constant_values=c + 1) for c in range(3)], axis=2)
        self.assertAllEqual(padded, frame)
        self.assertAllEqual(image_files.transform_image(pixels, 'x', ImageOptions()), pixels)

    def test_wide(self):
        """512×384 from 1024×768 after the crop; the bars are black, whatever the background."""
        pixels = noise(900, 1024)
        options = ImageOptions(None, (9, 9, 9), 'center-crop-wide', width=512, resize_filter='box')
        wide = image_files.transform_image(pixels, 'x', options)
        crop = pixels[66:66 + 768].astype(float).reshape(384, 2, 512, 2, 3).mean(axis=(1, 3))
        self.assertEqual(wide.shape, (512, 512, 3))
        self.assertAllClose(wide[64:448], crop, rtol=0, atol=1)
        self.assertFalse(wide[:64].any() or wide[448:].any())

    def test_filters_differ_and_box_is_the_average(self):
        pixels = noise(32, 32)
        results = {name: load_image(encode(pixels), options=ImageOptions(width=8, resize_filter=name))
                   for name in image_files.RESIZE_FILTERS}
        self.assertAllClose(results['box'], pixels.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)), rtol=0, atol=1)
        self.assertAllClose(results['area'], results['box'], rtol=0, atol=1)    # Where no pixel is divided.
        del results['area']
        self.assertLen({result.tobytes() for result in results.values()}, 5)

    def test_area_divides_pixels(self):
        for size, (width, height) in [((37, 50), (16, 16)), ((13, 20), (32, 7)), ((16, 16), (24, 40))]:
            pixels = noise(*size)
            result = image_files.resize_area(pixels, (width, height))
            expected = tf.image.resize(pixels, [height, width], 'area').numpy()
            self.assertEqual(result.shape, (height, width, 3))
            self.assertAllClose(result, expected, rtol=0, atol=0.51)
        rgba = np.zeros([3, 3, 4], np.uint8)
        rgba[:, 0] = [200, 100, 50, 255]
        rgba[:, 1:] = [0, 255, 0, 0]        # Green that nobody sees.
        small = image_files.resize_area(rgba, (2, 2))
        self.assertAllEqual(small[0], [[200, 100, 50, 170], [0, 0, 0, 0]])

    def test_transparent_colour_does_not_bleed(self):
        pixels = np.zeros([8, 8, 4], np.uint8)
        pixels[:, :4] = [200, 100, 50, 255]
        pixels[:, 4:] = [0, 255, 0, 0]      # Green that nobody sees.
        small = image_files.transform_image(pixels, 'x', ImageOptions(4, width=2, resize_filter='bilinear'))
        self.assertTrue((small[:, :, 3] < 255).any())
        self.assertAllClose(small[:, 0, :3], np.broadcast_to([200, 100, 50], [2, 3]), rtol=0, atol=4)

    def test_options_are_checked(self):
        for options, fragment in [({'channels': 2}, 'channels'), ({'transform': 'crop'}, 'center-crop'),
                                  ({'resize_filter': 'nearest'}, 'lanczos'), ({'width': 0}, 'width'),
                                  ({'height': 8}, 'height'), ({'background': (1, 2, 300)}, 'background')]:
            with self.assertRaisesRegex(UserError, fragment):
                load_image(encode(noise(8, 8)), options=ImageOptions(**options))
        with self.assertRaisesRegex(UserError, 'thin.png.*too large'):
            image_files.transformed_size((60000, 1), 'thin.png', ImageOptions(transform='pad'))

    def test_power_of_two(self):
        check_image_size(64, 64, 'x', converting=True)
        for size, mend in [((100, 100), 'Give --resolution=64'), ((300, 200), '--transform=center-crop '
                           '--resolution=128'), ((2, 2), '--resolution=4')]:
            with self.assertRaisesRegex(UserError, f'a.png has {size[0]}x{size[1]}.*{mend}'):
                check_image_size(*size, 'a.png', converting=True)


class HeaderTest(Base):
    """`read_header` looks at PNG files by itself; it must say what Pillow says."""

    def by_pillow(self, data):
        with image_files.open_image(data) as image:
            return (image_files.oriented_size(image), image_files.is_gray(image),
                    image_files.has_alpha(image))

    @quick
    @given(mode=st.sampled_from(['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16']), height=sides, width=sides,
           fmt=st.sampled_from(['PNG', 'PNG', 'TIFF', 'WEBP']), orientation=st.integers(0, 8),
           transparency=st.booleans(), profile=st.sampled_from([None, bytes(300), bytes(range(256)) * 40]))
    def test_as_pillow_says(self, mode, height, width, fmt, orientation, transparency, profile):
        pixels = noise(height, width, 4)
        picture = PIL.Image.fromarray(pixels[:, :, 0].astype(np.uint16)) if mode == 'I;16' else \
            PIL.Image.fromarray(pixels).convert(mode)
        options = {} if profile is None else {'icc_profile': profile}
        if orientation:
            options['exif'] = picture.getexif()
            options['exif'][0x112] = orientation
        if transparency and fmt == 'PNG' and mode in ('1', 'L', 'P', 'I;16'):
            options['transparency'] = 1
        if fmt == 'WEBP':
            picture = picture.convert('RGBA' if 'A' in mode else 'RGB')
        data = encode(picture, fmt, **options)
        self.assertEqual(tuple(image_files.read_header(data)), self.by_pillow(data))
        path = self.path('image.png')
        with open(path, 'wb') as file:
            file.write(data)
        self.assertEqual(tuple(image_files.read_header(path)), self.by_pillow(data))

    @settings(max_examples=150, deadline=None)
    @given(place=st.integers(0, 70), change=st.integers(1, 255), cut=st.integers(0, 200))
    def test_damage(self, place, change, cut):
        """Where the quick look finds nothing wrong, Pillow does not, either; errors are those of Pillow."""
        data = bytearray(encode(noise(3, 5)))
        data[place] ^= change
        data = bytes(data[:cut] if cut > 60 else data)
        try:
            expected = self.by_pillow(data)
        except UserError as error:
            with self.assertRaisesRegex(UserError, re.escape(str(error))):
                image_files.read_header(data)
        else:
            self.assertEqual(tuple(image_files.read_header(data)), expected)

    def test_the_quick_look_is_taken(self):
        for mode, expected in [('L', (True, False)), ('RGB', (False, False)), ('RGBA', (False, True))]:
            picture = PIL.Image.fromarray(noise(4, 6)).convert(mode)
            data = encode(picture, icc_profile=bytes(99), dpi=(1, 1))
            self.assertEqual(image_files._png_header(data), ((6, 4), *expected))


class BadFilesTest(Base):

    def check(self, path: str, *fragments: str) -> None:
        with self.assertRaises(UserError) as caught:
            load_image(path)
        self.assert_message(caught.exception, path, *fragments)

    def write(self, name: str, data: bytes) -> str:
        path = self.path(name)
        with open(path, 'wb') as file:
            file.write(data)
        return path

    def test_bad_files(self):
        self.check(self.path('none.png'), 'no file')
        self.check(self.write('empty.png', b''), '0 bytes')
        self.check(self.write('text.png', b'these are no pixels'), 'cannot be read as an image')
        os.mkdir(self.path('folder.png'))
        self.check(self.path('folder.png'), 'no regular file')
        os.mkfifo(self.path('pipe.png'))
        self.check(self.path('pipe.png'), 'no regular file')
        os.symlink('nowhere', self.path('link.png'))
        self.check(self.path('link.png'), 'link to a file that does not exist')
        postscript = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n'
        self.check(self.write('program.png', postscript), 'cannot be read as an image')

    def test_truncated_and_damaged(self):
        for fmt in ['PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF']:
            data = encode(noise(64, 64), fmt)
            self.check(self.write('cut', data[:len(data) * 2 // 3]))
        data = bytearray(encode(noise(64, 64)))
        data[len(data) // 2] ^= 255
        self.check(self.write('flipped.png', data), 'damaged')

    def test_bombs(self):
        header = png_chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0))
        bomb = b'\x89PNG\r\n\x1a\n' + header + png_chunk(b'IDAT', b'') + png_chunk(b'IEND', b'')
        self.check(self.write('bomb.png', bomb), str(image_files.MAX_PIXELS))

    @settings(max_examples=150, deadline=None)
    @given(fmt=st.sampled_from(['PNG', 'JPEG', 'WEBP', 'BMP', 'TIFF', 'GIF']), cut=st.integers(0, 100),
           flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4))
    def test_damage_is_told_or_harmless(self, fmt, cut, flips):
        data = bytearray(encode(random_images(1, 12)[0], fmt))
        data = data[:len(data) * cut // 100] if cut < 90 else data
        for position, change in flips:
            if data:
                data[position % len(data)] ^= change
        try:
            pixels = load_image(bytes(data), 'the name', ImageOptions(3, (0, 0, 0)))
        except UserError as error:
            self.assert_message(error, 'the name')
        else:
            self.assertEqual((pixels.dtype, pixels.ndim, pixels.shape[2]), (np.uint8, 3, 3))


if __name__ == '__main__':
    tf.test.main()
